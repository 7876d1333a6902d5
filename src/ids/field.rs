//! The writable fields of a participant, and which API version can carry which.

use super::ApiVersion;

/// A field that a create or an update can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `display_name`.
    DisplayName,
    /// `type` and `upstream_type`, which say one thing.
    Type,
    /// `profile_id`.
    ProfileId,
    /// `addresses`.
    Addresses,
    /// `attributes`.
    Attributes,
    /// `role_id`.
    RoleId,
    /// `last_read_message_index`.
    LastReadMessageIndex,
    /// `last_read_time`.
    LastReadTime,
    /// `create_time`.
    CreateTime,
    /// `update_time`.
    UpdateTime,
}

impl Field {
    /// Every field, in the contract's order.
    pub const ALL: [Self; 10] = [
        Self::DisplayName,
        Self::Type,
        Self::ProfileId,
        Self::Addresses,
        Self::Attributes,
        Self::RoleId,
        Self::LastReadMessageIndex,
        Self::LastReadTime,
        Self::CreateTime,
        Self::UpdateTime,
    ];

    /// The field's name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::DisplayName => "display_name",
            Self::Type => "type",
            Self::ProfileId => "profile_id",
            Self::Addresses => "addresses",
            Self::Attributes => "attributes",
            Self::RoleId => "role_id",
            Self::LastReadMessageIndex => "last_read_message_index",
            Self::LastReadTime => "last_read_time",
            Self::CreateTime => "create_time",
            Self::UpdateTime => "update_time",
        }
    }

    /// The field that a path of an update mask means.
    pub fn from_path(path: &str) -> Option<Self> {
        match path {
            "upstream_type" => Some(Self::Type),
            _ => Self::ALL.into_iter().find(|field| field.name() == path),
        }
    }

    /// Whether a create of this version can carry the field.
    pub fn in_create(self, version: ApiVersion) -> bool {
        match self {
            // Twilio takes these two in an update only.
            Self::LastReadMessageIndex | Self::LastReadTime => false,
            _ => self.in_update(version),
        }
    }

    /// Whether an update of this version can carry the field.
    pub fn in_update(self, version: ApiVersion) -> bool {
        match (self, version) {
            (Self::Addresses, _) => true,
            (Self::DisplayName | Self::Type | Self::ProfileId, version) => version == ApiVersion::V2,
            (
                Self::Attributes
                | Self::RoleId
                | Self::LastReadMessageIndex
                | Self::LastReadTime
                | Self::CreateTime
                | Self::UpdateTime,
                version,
            ) => version == ApiVersion::V1,
        }
    }

    /// Whether an update of this version can clear the field. v1 documents it for the addresses' parts (which are compared
    /// one by one) and the last-read index; attributes are reset to `{}`. v2's PUT clears whatever it leaves out.
    pub fn is_clearable(self, version: ApiVersion) -> bool {
        match version {
            ApiVersion::V1 => matches!(self, Self::Attributes | Self::LastReadMessageIndex),
            ApiVersion::V2 => self.in_update(version),
        }
    }
}
