//! Ends what would hold a graceful shutdown for ever: streams that wait for something that may never come.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Tells a body that waits when it is to end.
pub(super) struct Stopping {
    token: CancellationToken,
    /// Made when the body first waits, which one that is ready never does.
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Stopping {
    pub(super) fn new(token: CancellationToken) -> Self {
        Self { token, cancelled: None }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let token = &self.token;
        self.cancelled.get_or_insert_with(|| Box::pin(token.clone().cancelled_owned())).as_mut().poll(context)
    }
}

pin_project_lite::pin_project! {
    /// The requests of a stream, which end as if the caller had none left. Reflection reads them in a task of its own,
    /// which would keep the connection open after its answers have ended.
    pub(super) struct Requests {
        #[pin]
        inner: tonic::body::Body,
        stopping: Stopping,
    }
}

impl Requests {
    pub(super) fn new(inner: tonic::body::Body, token: CancellationToken) -> Self {
        Self { inner, stopping: Stopping::new(token) }
    }
}

impl Body for Requests {
    type Data = <tonic::body::Body as Body>::Data;
    type Error = <tonic::body::Body as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        match this.inner.poll_frame(context) {
            Poll::Pending => this.stopping.poll(context).map(|()| None),
            frame @ Poll::Ready(_) => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
