//! Participants of v1: the rules of
//! <https://www.twilio.com/docs/conversations-classic/api/conversation-participant-resource>.

use std::time::SystemTime;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::refusal::Refusal;
use crate::sandbox::dates;

/// The role of a participant that was given none.
const ROLE_SID: &str = "RL00000000000000000000000000000001";

/// Participants of one conversation
/// (<https://www.twilio.com/docs/conversations-classic/conversations-limits>).
pub(in crate::sandbox) const MOST: usize = 1000;
/// Characters of an identity or an address.
const MOST_CHARS: usize = 256;
const MOST_ATTRIBUTES_BYTES: usize = 4096;

#[derive(Debug, Clone)]
pub(in crate::sandbox) struct Participant {
    pub(in crate::sandbox) identity: Option<String>,
    pub(in crate::sandbox) binding: Option<Binding>,
    pub(in crate::sandbox) attributes: String,
    pub(in crate::sandbox) role_sid: String,
    pub(in crate::sandbox) created: SystemTime,
    pub(in crate::sandbox) updated: SystemTime,
    pub(in crate::sandbox) last_read_index: Option<i64>,
    pub(in crate::sandbox) last_read_timestamp: Option<String>,
}

/// How somebody takes part by messages. In group MMS an address has no proxy address, and a chat identity
/// has a projected address: the number that stands for it.
#[derive(Debug, Clone, Default)]
pub(in crate::sandbox) struct Binding {
    pub(in crate::sandbox) address: Option<String>,
    pub(in crate::sandbox) proxy: Option<String>,
    pub(in crate::sandbox) projected: Option<String>,
}

/// The form fields of a create or an update, as they came; as JSON for the control routes. `None` is a field that did not come.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::sandbox) struct Fields {
    pub(in crate::sandbox) identity: Option<String>,
    pub(in crate::sandbox) address: Option<String>,
    #[serde(rename = "proxy_address")]
    pub(in crate::sandbox) proxy: Option<String>,
    #[serde(skip)]
    pub(in crate::sandbox) proxy_fallback: Option<String>,
    #[serde(rename = "projected_address")]
    pub(in crate::sandbox) projected: Option<String>,
    pub(in crate::sandbox) attributes: Option<String>,
    pub(in crate::sandbox) role_sid: Option<String>,
    pub(in crate::sandbox) date_created: Option<String>,
    pub(in crate::sandbox) date_updated: Option<String>,
    #[serde(skip)] // no field of a create, which is what the control routes do
    pub(in crate::sandbox) last_read_index: Option<String>,
    #[serde(skip)]
    pub(in crate::sandbox) last_read_timestamp: Option<String>,
}

impl Binding {
    pub(in crate::sandbox) fn between(address: &str, proxy: &str) -> Binding {
        Binding { address: Some(address.to_owned()), proxy: Some(proxy.to_owned()), projected: None }
    }

    /// RCS with an SMS sender to fall back on: in Twilio's sample the answer's binding is that of SMS.
    fn or_sms(self, fallback: Option<&str>) -> Binding {
        let number = self.address.as_deref().and_then(|address| address.strip_prefix("rcs:"));
        match (number, fallback) {
            (Some(number), Some(fallback)) => Binding::between(number, fallback),
            _ => self,
        }
    }

    /// The `type` of the binding, which nobody says but the address.
    pub(in crate::sandbox) fn channel(&self) -> &'static str {
        self.address.as_deref().map_or("sms", channel)
    }
}

fn channel(address: &str) -> &'static str {
    let prefix = address.split_once(':').map(|(prefix, _)| prefix);
    ["whatsapp", "rcs", "messenger"].into_iter().find(|known| prefix == Some(known)).unwrap_or("sms")
}

impl Participant {
    pub(in crate::sandbox) fn new(
        identity: Option<String>,
        binding: Option<Binding>,
        now: SystemTime,
    ) -> Participant {
        Participant {
            identity,
            binding,
            attributes: "{}".to_owned(),
            role_sid: ROLE_SID.to_owned(),
            created: now,
            updated: now,
            last_read_index: None,
            last_read_timestamp: None,
        }
    }

    /// What create and update read alike.
    pub(in crate::sandbox) fn apply_common(&mut self, fields: &Fields) -> Result<(), Refusal> {
        if let Some(attributes) = &fields.attributes {
            if attributes.len() > MOST_ATTRIBUTES_BYTES {
                return Err(Refusal::AttributesTooLong);
            }
            if serde_json::from_str::<IgnoredAny>(attributes).is_err() {
                return Err(Refusal::AttributesNotJson(attributes.clone()));
            }
            self.attributes.clone_from(attributes);
        }
        if let Some(date) = &fields.date_created {
            self.created = dates::parse(date).ok_or_else(|| Refusal::BadDateCreated(date.clone()))?;
        }
        if let Some(date) = &fields.date_updated {
            self.updated = dates::parse(date).ok_or_else(|| Refusal::BadDateUpdated(date.clone()))?;
        }
        if let Some(role) = &fields.role_sid {
            let digits = role.strip_prefix("RL").filter(|digits| digits.len() == 32);
            if !digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
                return Err(Refusal::BadParameter(format!(
                    "RoleSid {role} does not match ^RL[0-9a-fA-F]{{32}}$"
                )));
            }
            self.role_sid.clone_from(role);
        }
        Ok(())
    }

    pub(in crate::sandbox) fn apply_update(&mut self, fields: &Fields) -> Result<(), Refusal> {
        if let Some(identity) = &fields.identity {
            if self.identity.is_none() {
                return Err(Refusal::IdentityNotAcceptable(identity.clone()));
            }
            self.identity = Some(checked_identity(identity)?.ok_or(Refusal::NobodyNamed)?);
        }
        self.apply_proxy(fields.proxy.as_deref())?;
        self.apply_projected(fields.projected.as_deref())?;
        if let Some(index) = &fields.last_read_index {
            let bad = || Refusal::BadLastReadIndex(index.clone());
            self.last_read_index = match index.as_str() {
                "null" => None,
                digits => Some(digits.parse().ok().filter(|index| *index >= 0).ok_or_else(bad)?),
            };
        }
        if let Some(timestamp) = &fields.last_read_timestamp {
            self.last_read_timestamp = Some(timestamp.clone());
        }
        Ok(())
    }

    /// The word `null` takes the proxy address away, as the documentation of the update says.
    fn apply_proxy(&mut self, proxy: Option<&str>) -> Result<(), Refusal> {
        let Some(proxy) = proxy else { return Ok(()) };
        let binding = self.binding.as_mut().filter(|binding| binding.address.is_some());
        match (binding, proxy) {
            (Some(binding), "null") => binding.proxy = None,
            (None, "null") => {}
            (None, proxy) => return Err(Refusal::ProxyNotAdded(proxy.to_owned())),
            (Some(binding), proxy) if binding.proxy.as_deref() == Some(proxy) => {
                return Err(Refusal::ProxyUnchanged(proxy.to_owned()));
            }
            (Some(binding), proxy) => {
                binding.proxy = Some(proxy.to_owned());
                check_binding(binding)?;
            }
        }
        Ok(())
    }

    /// The word `null` works here as well.
    fn apply_projected(&mut self, projected: Option<&str>) -> Result<(), Refusal> {
        match projected {
            None => {}
            Some("null") if self.identity.is_none() => {}
            Some("null") => self.binding = None,
            Some(projected) if self.identity.is_none() => {
                return Err(Refusal::ProjectedNotAdded(projected.to_owned()));
            }
            Some(projected) => {
                let binding = Binding { projected: Some(projected.to_owned()), ..Binding::default() };
                check_binding(&binding)?;
                self.binding = Some(binding);
            }
        }
        Ok(())
    }
}

/// An empty identity is none.
fn checked_identity(identity: &str) -> Result<Option<String>, Refusal> {
    if identity.chars().count() > MOST_CHARS {
        return Err(Refusal::IdentityTooLong(identity.to_owned()));
    }
    Ok((!identity.is_empty()).then(|| identity.to_owned()))
}

fn check_binding(binding: &Binding) -> Result<(), Refusal> {
    let legal = |address: &str| !address.is_empty() && address.chars().count() <= MOST_CHARS;
    if let Some(bad) = [&binding.address, &binding.projected].into_iter().flatten().find(|text| !legal(text))
    {
        return Err(Refusal::BadAddress(bad.clone()));
    }
    let Some(proxy) = &binding.proxy else {
        return Ok(());
    };
    if !legal(proxy) {
        return Err(Refusal::BadProxyAddress(proxy.clone()));
    }
    match &binding.address {
        Some(address) if address == proxy => Err(Refusal::AddressIsProxy(address.clone())),
        Some(address) if channel(address) != channel(proxy) => {
            Err(Refusal::ChannelsDiffer(address.clone(), proxy.clone()))
        }
        Some(_) | None => Ok(()),
    }
}

/// Who the fields of a create name: a chat identity or an address, and nobody is both.
pub(in crate::sandbox) fn named(fields: &Fields) -> Result<(Option<String>, Option<Binding>), Refusal> {
    let identity = fields.identity.as_deref().map(checked_identity).transpose()?.flatten();
    let Fields { address, proxy, projected, .. } = fields;
    let binding = Binding { address: address.clone(), proxy: proxy.clone(), projected: projected.clone() };
    check_binding(&binding)?;
    let binding = binding.or_sms(fields.proxy_fallback.as_deref());
    check_binding(&binding)?;
    match (identity, &binding) {
        (Some(identity), Binding { address: None, proxy: None, projected }) => {
            let bound = projected.is_some();
            Ok((Some(identity), bound.then_some(binding)))
        }
        (Some(identity), _) => Err(Refusal::IdentityNotAcceptable(identity)),
        (None, Binding { address: None, .. }) => Err(Refusal::NobodyNamed),
        (None, Binding { projected: Some(projected), .. }) => {
            Err(Refusal::ProjectedNotAdded(projected.clone()))
        }
        (None, _) => Ok((None, Some(binding))),
    }
}
