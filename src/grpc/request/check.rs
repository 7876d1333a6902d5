//! Everything that is wrong with a request, so that a caller can mend all of it at once.

use std::fmt::Display;

use crate::grpc::status::{self, Reason};
use crate::ids::{ApiVersion, Violation};

/// Collects violations while a request is read.
#[derive(Default)]
pub(super) struct Check {
    violations: Vec<Violation>,
    /// The reason of the last violation that has one of its own.
    own_reason: Option<Reason>,
    /// The version of the conversation, once it is known.
    pub(super) version: Option<ApiVersion>,
}

/// A request that is refused.
#[derive(Debug)]
pub(in crate::grpc) struct Refused {
    reason: Reason,
    violations: Vec<Violation>,
    version: Option<ApiVersion>,
}

impl From<Refused> for tonic::Status {
    fn from(Refused { reason, violations, version }: Refused) -> Self {
        status::refused(reason, &violations, version)
    }
}

impl Check {
    pub(super) fn refuse(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.violations.push(Violation::new(field, description));
    }

    /// As `refuse`, for what has a reason of its own, which holds where nothing else is wrong.
    pub(super) fn refuse_as(&mut self, reason: Reason, field: &(impl Display + ?Sized), description: &str) {
        self.own_reason = Some(reason);
        self.refuse(field.to_string(), description);
    }

    /// What there is, or `None` and a violation. The field's path is written only for that.
    pub(super) fn take<T>(
        &mut self,
        field: &(impl Display + ?Sized),
        result: Result<T, impl Into<String>>,
    ) -> Option<T> {
        result.map_err(|description| self.refuse(field.to_string(), description)).ok()
    }

    pub(super) fn extend(&mut self, violations: Vec<Violation>) {
        self.violations.extend(violations);
    }

    pub(super) fn into_violations(self) -> Vec<Violation> {
        self.violations
    }

    /// The value, unless anything at all was wrong.
    pub(super) fn done<T>(self, value: Option<T>) -> Result<T, Refused> {
        let Self { violations, own_reason, version } = self;
        match value {
            Some(value) if violations.is_empty() => Ok(value),
            _ => {
                let own_reason = own_reason.filter(|_| violations.len() == 1);
                Err(Refused { reason: own_reason.unwrap_or(Reason::InvalidRequest), violations, version })
            }
        }
    }
}
