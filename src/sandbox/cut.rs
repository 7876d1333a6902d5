//! Playing a peer that hangs up.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use thiserror::Error;

/// Why a connection ends: it was asked for.
#[derive(Debug, Error)]
#[error("the connection is cut by a fault")]
pub(super) struct Hangup;

/// Marks a response that must never be sent.
#[derive(Debug, Clone)]
struct Unsent;

/// A response in whose place the connection is closed without a byte.
pub(super) fn before() -> Response {
    let mut response = ().into_response();
    response.extensions_mut().insert(Unsent);
    response
}

/// The response's head, half of its body, and then the connection is closed. A response without a body is
/// not sent at all: there is no middle to cut it in.
pub(super) async fn mid(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return before();
    };
    if body.is_empty() {
        return before();
    }
    // The body's size hint makes hyper announce the whole length.
    head.headers.remove(header::CONTENT_LENGTH);
    let half = body.slice(..body.len() / 2);
    Response::from_parts(
        head,
        Body::new(HalfBody { announced: body.len(), half: Some(half), flushed: false }),
    )
}

/// The last word before hyper writes: an error makes it close the connection instead.
pub(super) fn hang_up_if_asked(response: Response) -> Result<Response, Hangup> {
    match response.extensions().get::<Unsent>() {
        Some(Unsent) => Err(Hangup),
        None => Ok(response),
    }
}

struct HalfBody {
    announced: usize,
    half: Option<Bytes>,
    flushed: bool,
}

impl HttpBody for HalfBody {
    type Data = Bytes;
    type Error = Hangup;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Hangup>>> {
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        // hyper flushes when a body is pending, and throws away what it has buffered when a body fails.
        if !self.flushed {
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Hangup)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced as u64)
    }
}
