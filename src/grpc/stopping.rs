//! Ends what would hold a graceful shutdown for ever: streams that wait for something that may never come.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Tells a body that waits when it is to end. Made when it first waits, which one that is ready never does: to clone the
/// token takes a lock that all calls share.
#[derive(Default)]
pub(super) struct Stopping(Option<Pin<Box<WaitForCancellationFutureOwned>>>);

impl Stopping {
    pub(super) fn poll(&mut self, token: &CancellationToken, context: &mut Context<'_>) -> Poll<()> {
        self.0.get_or_insert_with(|| Box::pin(token.clone().cancelled_owned())).as_mut().poll(context)
    }
}

pin_project_lite::pin_project! {
    /// The requests of a stream, which end as if the caller had none left. Reflection reads them in a task of its own,
    /// which would keep the connection open after its answers have ended.
    pub(super) struct Requests<B> {
        #[pin]
        inner: B,
        token: CancellationToken,
        stopping: Stopping,
    }
}

impl<B> Requests<B> {
    pub(super) fn new(inner: B, token: CancellationToken) -> Self {
        Self { inner, token, stopping: Stopping::default() }
    }
}

impl<B: Body> Body for Requests<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        match this.inner.poll_frame(context) {
            Poll::Pending => this.stopping.poll(this.token, context).map(|()| None),
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
