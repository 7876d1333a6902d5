//! An answer's body.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::Call;
use crate::grpc::pace;
use crate::grpc::status::Reason;
use crate::grpc::stopping::Stopping;

pin_project! {
    /// An answer's body, which is given in slices, notes the status in its trailers and ends when the gateway stops.
    pub struct Answer {
        #[pin]
        inner: tonic::body::Body,
        // None where the call has ended with the headers.
        call: Option<Call>,
        // What is there already of a part that is longer than a slice.
        rest: Bytes,
        stopping: Stopping,
    }
}

impl Answer {
    pub(super) fn of(inner: tonic::body::Body, call: Option<Call>) -> Self {
        Self { inner, call, rest: Bytes::new(), stopping: Stopping::default() }
    }

    /// As the gRPC protocol asks for: a client that does not speak it could not read a gRPC status.
    pub(super) fn to_no_call(status: StatusCode) -> Response<Self> {
        let mut response = Response::new(Self::of(tonic::body::Body::empty(), None));
        *response.status_mut() = status;
        response
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = <tonic::body::Body as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let Some(call) = this.call else { return this.inner.poll_frame(context) };
        if call.ended {
            return Poll::Ready(None);
        }
        if !this.rest.is_empty() {
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(Frame::data(next_slice(this.rest)))));
        }
        if call.has_expired(context) {
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(call.end_early(Reason::Unauthenticated))));
        }
        // A stream's work is done while it is polled, and belongs to the call's span.
        let inner = this.inner;
        let poll = AssertUnwindSafe(|| call.span.within(|| inner.poll_frame(context)));
        let Ok(polled) = catch_unwind(poll) else {
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(call.end_early(Reason::Internal))));
        };
        let Poll::Ready(frame) = polled else {
            pace::wait();
            std::task::ready!(this.stopping.poll(&call.calls.0.end_streams, context));
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(call.end_early(Reason::ShuttingDown))));
        };
        pace::give(call.patience());
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            call.end_by(trailers);
        }
        let rest = this.rest;
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| first_slice(data, rest)))))
    }

    fn is_end_stream(&self) -> bool {
        let has_ended = self.call.as_ref().is_some_and(|call| call.ended);
        self.rest.is_empty() && (has_ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// hyper hands on all that it is given as soon as the caller has room for a byte, and no longer waits for the caller then:
/// with more than this at once, its memory would be the caller's for as long as the connection lasts.
const SLICE: usize = 16 * 1024;

fn first_slice(data: Bytes, rest: &mut Bytes) -> Bytes {
    if data.len() <= SLICE {
        return data;
    }
    *rest = data;
    rest.split_to(SLICE)
}

fn next_slice(rest: &mut Bytes) -> Bytes {
    if rest.len() > SLICE {
        return rest.split_to(SLICE);
    }
    // The last is a copy: it may stay after the call, and would keep the memory of all before it.
    Bytes::copy_from_slice(&std::mem::take(rest))
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::{Code, Status};

    use super::*;
    use crate::grpc::call::tests::begin;

    #[tokio::test]
    async fn a_stream_that_panics_ends_with_a_status() {
        let call = begin();
        let calls = call.calls.clone();
        let parts = futures_util::stream::poll_fn(|_| -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            panic!("as a bug would")
        });
        let answer = call.observe(Response::new(tonic::body::Body::new(StreamBody::new(parts))));
        let trailers = answer.into_body().collect().await.unwrap().trailers().cloned();
        assert_eq!(Status::from_header_map(&trailers.unwrap()).unwrap().code(), Code::Internal);
        assert_eq!(calls.in_flight(), 0);
    }

    #[test]
    fn a_long_part_is_given_in_slices() {
        for length in [1, SLICE, SLICE + 1, 2 * SLICE, 3 * SLICE - 1] {
            let part: Bytes = (0..=u8::MAX).cycle().take(length).collect();
            let mut rest = Bytes::new();
            let mut slices = vec![first_slice(part.clone(), &mut rest)];
            while !rest.is_empty() {
                slices.push(next_slice(&mut rest));
            }
            assert!(slices.iter().all(|slice| slice.len() <= SLICE));
            assert_eq!(slices.len(), length.div_ceil(SLICE));
            assert_eq!(slices.concat(), part);
            // Alone, the last keeps nothing else's memory.
            drop((slices.drain(..slices.len() - 1), part));
            assert!(slices[0].is_unique(), "{length}");
        }
    }
}
