//! The methods that there are: what spans, metrics and log lines call them, and what their calls count among.

use std::collections::HashMap;
use std::sync::Arc;

use crate::proto::{self, Message as _};
use crate::telemetry::{MethodMetrics, Metrics};

/// What the paths of the health protocol begin with.
const HEALTH: &str = "grpc.health.v1.Health/";

/// This contract's methods by their paths, and what stands for any other.
pub(super) struct Methods {
    ours: HashMap<Arc<str>, Arc<Method>>,
    health: Arc<Method>,
    other: Arc<Method>,
}

impl Methods {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let [health, other] = [Kind::Health, Kind::Other].map(|kind| Method::new("_OTHER", kind, metrics));
        Self { ours: methods(metrics), health, other }
    }

    /// By the path of a request.
    pub(super) fn find(&self, path: &str) -> Arc<Method> {
        let path = path.trim_start_matches('/');
        let other = || if path.starts_with(HEALTH) { &self.health } else { &self.other };
        self.ours.get(path).unwrap_or_else(other).clone()
    }
}

/// A method as spans, metrics and log lines call it, and what counts its calls.
pub(super) struct Method {
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    pub(super) metrics: MethodMetrics,
}

impl Method {
    pub(super) fn new(name: &str, kind: Kind, metrics: &Metrics) -> Arc<Self> {
        let name = name.into();
        let metrics = metrics.of_method(&name);
        Arc::new(Self { name, kind, metrics })
    }
}

/// What a call counts among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// This contract's, but for watchers.
    Call,
    /// One of those that is answered in many parts.
    Stream,
    Watcher,
    /// Never refused, whoever asks: a restart would be the answer to a health check that fails.
    Health,
    /// Reflection, and what there is no method for.
    Other,
}

impl Kind {
    /// Its counter.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Call | Self::Stream => 0,
            Self::Watcher => 1,
            Self::Health | Self::Other => 2,
        }
    }
}

/// The paths of this contract's methods: the values that the span's `rpc.method` may take.
fn methods(metrics: &Metrics) -> HashMap<Arc<str>, Arc<Method>> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("{}.{}/{}", file.package(), service.name(), method.name());
                let kind = match method.name() {
                    "WatchParticipants" => Kind::Watcher,
                    _ if method.server_streaming() => Kind::Stream,
                    _ => Kind::Call,
                };
                let method = Method::new(&path, kind, metrics);
                methods.insert(method.name.clone(), method);
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access;

    #[test]
    fn the_methods_are_the_contracts_and_those_that_rules_can_name() {
        let methods = methods(&Metrics::new(None).unwrap());
        let mut names: Vec<_> = methods.keys().filter_map(|path| path.rsplit('/').next()).collect();
        let mut named = access::Method::ALL.map(access::Method::name);
        names.sort_unstable();
        named.sort_unstable();
        assert_eq!(names, named);
        assert_eq!(methods["participant.v1.ParticipantService/GetParticipant"].kind, Kind::Call);
        assert_eq!(methods["participant.v1.ParticipantService/StreamParticipants"].kind, Kind::Stream);
        assert_eq!(methods["participant.v1.ParticipantService/WatchParticipants"].kind, Kind::Watcher);
    }
}
