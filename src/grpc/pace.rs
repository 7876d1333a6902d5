//! Ends the answers that nobody reads. A caller may keep a stream's window closed for as long as it likes; hyper asks an
//! answer for its next part only once there is room for it, so that no deadline within the answer would ever be looked at.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task_local;
use tokio::time::{Sleep, sleep};

/// Whose turn it is in the task of a stream.
#[derive(Clone, Copy)]
enum Turn {
    /// The gateway's: the caller waits for an answer, or for more of it.
    Gateway,
    /// The caller's, since the last time that the task ran, and for so long.
    NewlyCaller(Duration),
    /// The caller's.
    Caller,
}

task_local! {
    // A name and no state: each stream's task has a value of its own. hyper makes the future of a stream, and between its
    // outside and the answer within it there is no other way.
    static TURN: Cell<Turn>;
}

/// The caller is given a part of its answer, which it has yet to take, within so long.
pub(super) fn give(patience: Duration) {
    set(Turn::NewlyCaller(patience));
}

/// All that there was is taken, and the caller waits.
pub(super) fn wait() {
    set(Turn::Gateway);
}

fn set(turn: Turn) {
    // Only a test asks for an answer outside of the task of a stream.
    let _ = TURN.try_with(|it| it.set(turn));
}

/// Runs a stream to its end, or until its caller has taken nothing of its answer for as long as it may.
pub fn paced<F: Future<Output = ()>>(stream: F) -> impl Future<Output = ()> {
    TURN.scope(Cell::new(Turn::Gateway), Paced { stream, end: None })
}

pin_project! {
    struct Paced<F> {
        #[pin]
        stream: F,
        // Made when the caller is first waited for, which is never where it reads as fast as it is answered.
        end: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Paced<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(context).is_ready() {
            return Poll::Ready(());
        }
        match TURN.with(|turn| turn.replace(Turn::Caller)) {
            Turn::Gateway => {
                wait();
                *this.end = None;
            }
            Turn::NewlyCaller(patience) => *this.end = Some(Box::pin(sleep(patience))),
            Turn::Caller => {}
        }
        match this.end {
            // Dropped, the stream is reset.
            Some(end) => end.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up() {
        let began = Instant::now();
        let stream = async {
            give(PATIENCE);
            sleep(Duration::from_secs(20)).await;
            give(PATIENCE);
            pending::<()>().await;
        };
        paced(stream).await;
        assert_eq!(began.elapsed(), Duration::from_secs(50));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_gateway_is_not() {
        let began = Instant::now();
        let stream = async {
            sleep(Duration::from_secs(3600)).await;
            give(PATIENCE);
            sleep(Duration::from_secs(20)).await;
            let mut is_later = false;
            wait();
            poll_fn(|context| {
                if std::mem::replace(&mut is_later, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            sleep(Duration::from_secs(3600)).await;
        };
        paced(stream).await;
        assert_eq!(began.elapsed(), Duration::from_secs(7220));
    }
}
