//! How often a caller may call: a token bucket, by the generic cell rate algorithm, which keeps one number and takes no lock.
//! The crate `governor` does the same, and would bring a third version of hashbrown and a timer's thread.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::access::CallRate;

/// One caller's, full to begin with. Times are nanoseconds since it was made.
pub(super) struct Bucket {
    began: Instant,
    /// When it is full again, if nothing more is taken.
    full_at: AtomicU64,
    /// Brings one call back.
    interval: u64,
    /// Brings all of them back.
    depth: u64,
}

impl Bucket {
    pub(super) fn new(rate: CallRate) -> Self {
        let interval = 1_000_000_000 / u64::from(rate.per_second.get());
        let depth = interval * u64::from(rate.burst.get());
        Self { began: Instant::now(), full_at: AtomicU64::new(0), interval, depth }
    }

    /// Takes one call, or says how long to wait for it.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let now = self.now();
        let after = |full_at: u64| full_at.max(now) + self.interval;
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            Some(after(full_at)).filter(|after| *after <= now + self.depth)
        });
        taken.map(drop).map_err(|full_at| Duration::from_nanos(after(full_at) - now - self.depth))
    }

    pub(super) fn is_full(&self) -> bool {
        self.full_at.load(Ordering::Relaxed) <= self.now()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX / 2)
    }
}

/// How long an empty bucket takes to be full.
pub(super) fn time_to_fill(CallRate { per_second, burst }: CallRate) -> Duration {
    Duration::from_secs(1).saturating_mul(burst.get()) / NonZeroU32::get(per_second)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn bucket(per_second: u32, burst: u32) -> Bucket {
        let [per_second, burst] = [per_second, burst].map(|number| NonZeroU32::new(number).unwrap());
        Bucket::new(CallRate { per_second, burst })
    }

    /// How many calls it lets pass.
    fn passed(bucket: &Bucket, tries: u32) -> usize {
        (0..tries).filter(|_| bucket.take().is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate() {
        let bucket = bucket(10, 5);
        assert_eq!(passed(&bucket, 100), 5);
        for _ in 0..100 {
            advance(Duration::from_millis(100)).await;
            assert_eq!(passed(&bucket, 3), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_that_is_told_is_the_wait_that_it_takes() {
        let bucket = bucket(4, 1);
        bucket.take().unwrap();
        advance(Duration::from_millis(100)).await;
        let wait = bucket.take().unwrap_err();
        assert_eq!(wait, Duration::from_millis(150));
        advance(wait - Duration::from_millis(1)).await;
        bucket.take().unwrap_err();
        advance(Duration::from_millis(1)).await;
        bucket.take().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_fills_it_and_no_more_than_that() {
        let bucket = bucket(1, 3);
        assert!(bucket.is_full());
        assert_eq!(passed(&bucket, 3), 3);
        advance(Duration::from_millis(2999)).await;
        assert!(!bucket.is_full());
        advance(Duration::from_secs(3600)).await;
        assert!(bucket.is_full());
        assert_eq!(passed(&bucket, 100), 3);
    }

    #[test]
    fn callers_at_the_same_time_take_no_more_than_there_is() {
        let bucket = bucket(1, 1000);
        let taken: usize = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| passed(&bucket, 1000)));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((1000..1010).contains(&taken), "{taken}");
    }
}
