//! Reads the policy again while the gateway runs.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::{Policies, Policy};
use crate::config::{PolicyFile, Problem};
use crate::telemetry::Metrics;

type Read = Result<Option<Policy>, Vec<Problem>>;

/// Takes a policy that has changed, until the token is cancelled. By content: a mount may keep its times. And only once it was
/// read twice: half of a rule that is being written may allow more than the whole.
pub(super) async fn upkeep(
    file: PolicyFile,
    policies: Policies,
    every: Duration,
    metrics: Metrics,
    end: CancellationToken,
) {
    let mut interval = tokio::time::interval(every);
    let mut last = policies.current().map(Ok).transpose();
    let mut seen = last.clone();
    while end.run_until_cancelled(interval.tick()).await.is_some() {
        let file = file.clone();
        // One read at a time: each that hangs holds a thread.
        let reading = spawn_blocking(move || file.read());
        let Some(Ok(read)) = end.run_until_cancelled(reading).await else { continue };
        if read != last && read == seen {
            metrics.policy_reloaded(take(&policies, &read));
            last = read.clone();
        }
        seen = read;
    }
}

/// What became of what was read: the outcome as the metric calls it.
fn take(policies: &Policies, read: &Read) -> &'static str {
    match read {
        Ok(Some(policy)) if policies.current().as_ref() == Some(policy) => {
            info!("the file holds the policy in use again");
            "unchanged"
        }
        Ok(Some(policy)) => {
            info!(rules = policy.rules.len(), "took a new policy");
            policies.replace(policy.clone());
            "taken"
        }
        // It would open everything to everybody, which takes a restart.
        Ok(None) => {
            warn!("keep the last good policy: the file holds none any more");
            "refused"
        }
        Err(problems) => {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            warn!("keep the last good policy: {}", problems.join("; "));
            "refused"
        }
    }
}
