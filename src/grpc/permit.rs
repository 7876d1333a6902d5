//! Whether a caller may do what it asks for. It is looked at before anything is, so that nobody learns what there is.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::{Request, Status};

use super::audit::{Entry, Record};
use super::status::{self, Reason};
use super::{Caller, Opened, SERVICE_NAME, Service};
use crate::access::{Method, PolicyChanges, Sight};
use crate::ids::AccountId;
use crate::proto::{self, ConversationRef, Participant, ParticipantConversation, ParticipantEvent};

/// What a request is about, by its own words, which nobody has checked yet.
#[derive(Clone, Copy, Default)]
pub(super) struct Subject<'a> {
    pub(super) account: &'a str,
    pub(super) service: &'a str,
    pub(super) conversation: &'a str,
    pub(super) participant: &'a str,
}

impl<'a> Subject<'a> {
    fn of(conversation: Option<&'a ConversationRef>, participant: &'a str) -> Self {
        let Some(ConversationRef { conversation_id, service_id, account_id, api_version: _ }) = conversation
        else {
            return Self { participant, ..Self::default() };
        };
        Self { account: account_id, service: service_id, conversation: conversation_id, participant }
    }
}

/// A request that is about one place.
pub(super) trait Asks {
    const METHOD: Method;

    fn subject(&self) -> Subject<'_>;
}

macro_rules! asks {
    ($($request:ident: $method:ident, $participant:expr;)*) => {$(
        impl Asks for proto::$request {
            const METHOD: Method = Method::$method;

            fn subject(&self) -> Subject<'_> {
                let participant: fn(&Self) -> &str = $participant;
                Subject::of(self.conversation.as_ref(), participant(self))
            }
        }
    )*};
}

asks! {
    GetParticipantRequest: Get, |request| &request.participant_id;
    ListParticipantsRequest: List, |_| "";
    StreamParticipantsRequest: Stream, |_| "";
    BatchGetParticipantsRequest: BatchGet, |_| "";
    CreateParticipantRequest: Create, |_| "";
    UpdateParticipantRequest: Update, |request| &request.participant_id;
    DeleteParticipantRequest: Delete, |request| &request.participant_id;
}

impl Asks for proto::ListParticipantConversationsRequest {
    const METHOD: Method = Method::ListConversations;

    fn subject(&self) -> Subject<'_> {
        Subject { account: &self.account_id, service: &self.service_id, ..Subject::default() }
    }
}

impl Service {
    /// The request of a caller that may make it, and how much of the answer it sees.
    pub(super) fn permitted<T: Asks>(&self, request: Request<T>) -> Result<(Opened, Sight, T), Status> {
        let (opened, request) = opened(request)?;
        let Subject { account, service, .. } = request.subject();
        match opened.caller.granted.sight(T::METHOD, self.accounts.named(account), service) {
            Some(sight) => Ok((opened, sight, request)),
            None => Err(denied(&opened.caller, &self.entry(&opened, T::METHOD, &request.subject()))),
        }
    }

    /// The same for the parts of an answer, which come one after the other.
    pub(super) fn permit<T: Asks>(&self, opened: &Opened, request: &T) -> Permit {
        let subject = request.subject();
        Permit {
            caller: opened.caller.clone(),
            method: T::METHOD,
            account: self.accounts.named(subject.account).to_owned(),
            service: subject.service.to_owned(),
            entry: self.entry(opened, T::METHOD, &subject),
        }
    }

    /// The same for a watcher, by what it wants to be told of.
    pub(super) fn permitted_watch(
        &self,
        request: Request<proto::WatchParticipantsRequest>,
    ) -> Result<(Opened, Watched, proto::WatchParticipantsRequest), Status> {
        let (opened, request) = opened(request)?;
        let named = request.conversations.iter().map(|one| self.accounts.named(&one.account_id).to_owned());
        let first = Subject::of(request.conversations.first(), "");
        let watched = Watched {
            caller: opened.caller.clone(),
            changes: opened.caller.granted.changes(),
            is_filtered: !request.conversations.is_empty(),
            accounts: match request.conversations.is_empty() {
                true => self.accounts.all().map(|account| account.as_str().to_owned()).collect(),
                false => named.collect(),
            },
            entry: self.entry(&opened, Method::Watch, &first),
        };
        watched.check()?;
        Ok((opened, watched, request))
    }

    /// What is recorded of a write.
    pub(super) fn record<T: Asks>(&self, opened: &Opened, request: &T) -> Record {
        Record::new(self.entry(opened, T::METHOD, &request.subject()))
    }

    fn entry(&self, opened: &Opened, method: Method, subject: &Subject<'_>) -> Entry {
        let Opened { caller, began, .. } = opened;
        let method = format!("{SERVICE_NAME}/{}", method.name()).into();
        let account = self.accounts.named(subject.account);
        Entry::new(&caller.identity, &method, *began).about(&Subject { account, ..*subject })
    }
}

fn denied(caller: &Caller, entry: &Entry) -> Status {
    caller.audit().denied(entry, Reason::NotAllowed);
    status::plain(Reason::NotAllowed)
}

/// What a caller may read part by part, as long as the policy allows it.
pub(super) struct Permit {
    caller: Arc<Caller>,
    method: Method,
    account: String,
    service: String,
    entry: Entry,
}

impl Permit {
    /// How much of the next part it sees.
    pub(super) fn now(&self) -> Result<Sight, Status> {
        let sight = self.caller.granted.sight(self.method, &self.account, &self.service);
        sight.ok_or_else(|| denied(&self.caller, &self.entry))
    }
}

/// What a watcher may be told, as long as the policy allows it. Events tell no service: who may see some services only may
/// not watch.
pub(super) struct Watched {
    caller: Arc<Caller>,
    changes: PolicyChanges,
    is_filtered: bool,
    /// Those that it names conversations of, or all that there are.
    accounts: BTreeSet<String>,
    entry: Entry,
}

impl Watched {
    /// Waits until the policy changes, and ends the watch where it is no longer allowed.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        self.changes.next().await;
        self.check()
    }

    /// How much of an event of this account it sees; `None`: it is not told.
    pub(super) fn sight(&self, account: &str) -> Option<Sight> {
        self.caller.granted.sight(Method::Watch, account, "")
    }

    /// It may be told of all that it names; where it names nothing, of something.
    fn check(&self) -> Result<(), Status> {
        let mut allowed = self.accounts.iter().map(|account| self.sight(account).is_some());
        let is_allowed = if self.is_filtered { allowed.all(|it| it) } else { allowed.any(|it| it) };
        if is_allowed { Ok(()) } else { Err(denied(&self.caller, &self.entry)) }
    }
}

fn opened<T>(mut request: Request<T>) -> Result<(Opened, T), Status> {
    // Only a service that stands alone has none.
    let opened = request.extensions_mut().remove::<Opened>();
    Ok((opened.ok_or_else(|| status::plain(Reason::Internal))?, request.into_inner()))
}

/// The participant as a caller of this sight sees it.
pub(super) fn shown(mut participant: Participant, sight: Sight) -> Participant {
    if sight == Sight::Masked {
        participant.mask();
        // A hash of the whole: whoever tries all telephone numbers would find out which one it is of.
        participant.etag.clear();
    }
    participant
}

/// The event as a watcher of this sight sees it.
pub(super) fn shown_event(mut event: ParticipantEvent, sight: Sight) -> ParticipantEvent {
    event.participant = event.participant.map(|participant| shown(participant, sight));
    event
}

/// The conversations of a page that the caller may see, which may be fewer where it may see some services only.
pub(super) fn shown_conversations(
    conversations: &[ParticipantConversation],
    account: &AccountId,
    opened: &Opened,
) -> Vec<ParticipantConversation> {
    let sight = |one: &ParticipantConversation| {
        opened.caller.granted.sight(Method::ListConversations, account.as_str(), &one.service_id)
    };
    let shown = conversations.iter().filter_map(|one| {
        let mut shown = one.clone();
        if sight(one)? == Sight::Masked {
            shown.mask();
        }
        Some(shown)
    });
    shown.collect()
}
