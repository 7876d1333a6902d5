//! What each caller may do: rules, of which any one is enough. Where there is a policy, what no rule allows is refused.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::Identity;
use crate::ids::CallerId;

/// A method of the contract, as rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// `GetParticipant`.
    Get,
    /// `ListParticipants`.
    List,
    /// `StreamParticipants`.
    Stream,
    /// `BatchGetParticipants`.
    BatchGet,
    /// `ListParticipantConversations`.
    ListConversations,
    /// `WatchParticipants`.
    Watch,
    /// `CreateParticipant`.
    Create,
    /// `UpdateParticipant`.
    Update,
    /// `DeleteParticipant`.
    Delete,
}

impl Method {
    /// Every method of the contract.
    pub const ALL: [Self; 9] = [
        Self::Get,
        Self::List,
        Self::Stream,
        Self::BatchGet,
        Self::ListConversations,
        Self::Watch,
        Self::Create,
        Self::Update,
        Self::Delete,
    ];

    /// What the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GetParticipant",
            Self::List => "ListParticipants",
            Self::Stream => "StreamParticipants",
            Self::BatchGet => "BatchGetParticipants",
            Self::ListConversations => "ListParticipantConversations",
            Self::Watch => "WatchParticipants",
            Self::Create => "CreateParticipant",
            Self::Update => "UpdateParticipant",
            Self::Delete => "DeleteParticipant",
        }
    }

    /// Whether it changes anything.
    pub fn is_write(self) -> bool {
        matches!(self, Self::Create | Self::Update | Self::Delete)
    }
}

/// Some of the methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods(u16);

impl Methods {
    /// Those that a word of a rule means: a method's name, `read`, `write` or `*`; `None` where it means none.
    pub fn parse(word: &str) -> Option<Self> {
        let is_meant = |method: &Method| match word {
            "*" => true,
            "read" => !method.is_write(),
            "write" => method.is_write(),
            name => method.name() == name,
        };
        let methods: Self = Method::ALL.into_iter().filter(is_meant).collect();
        (methods != Self::default()).then_some(methods)
    }

    /// Both these and those.
    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    fn has(self, method: Method) -> bool {
        self.0 & (1 << method as u16) != 0
    }
}

impl FromIterator<Method> for Methods {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        Self(methods.into_iter().fold(0, |all, method| all | 1 << method as u16))
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Method::ALL.iter().filter(|method| self.has(**method)).map(|one| one.name()).collect();
        f.write_str(&names.join(", "))
    }
}

/// Names of callers: one, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    is_prefix: bool,
}

/// What the names of callers begin with.
const KINDS: [&str; 5] = ["spiffe://", "dns:", "jwt:", "token:", "address:"];

impl Pattern {
    /// A name, or the begin of names with `*` at its end.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let begin = text.strip_suffix('*');
        let (text, is_prefix) = (begin.unwrap_or(text), begin.is_some());
        if text.contains('*') {
            return Err("must have `*` at its end only");
        }
        let is_name = KINDS
            .iter()
            .any(|kind| text.strip_prefix(kind).is_some_and(|rest| is_prefix || !rest.is_empty()));
        if is_name || (text == "anonymous" && !is_prefix) || (text.is_empty() && is_prefix) {
            return Ok(Self { text: text.to_owned(), is_prefix });
        }
        Err("must be `*`, `anonymous`, or begin with `spiffe://`, `dns:`, `jwt:`, `token:` or `address:`")
    }

    fn fits(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

/// Allows some callers some methods in some places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom.
    pub callers: Vec<Pattern>,
    /// In these accounts; `None`: in all.
    pub accounts: Option<BTreeSet<Arc<str>>>,
    /// In these of v1's services, which a request has to name; `None`: in all, and where none is named.
    pub services: Option<BTreeSet<Arc<str>>>,
    /// What.
    pub methods: Methods,
    /// Whether they see identities, names, addresses and attributes.
    pub shows_pii: bool,
}

impl Rule {
    fn allows(&self, method: Method, account: &str, service: &str) -> bool {
        let has = |some: &Option<BTreeSet<Arc<str>>>, one: &str| {
            some.as_ref().is_none_or(|some| some.contains(one))
        };
        self.methods.has(method) && has(&self.accounts, account) && has(&self.services, service)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { callers, accounts, services, methods, shows_pii } = self;
        let callers: Vec<_> = callers.iter().map(ToString::to_string).collect();
        let list = |some: &BTreeSet<Arc<str>>| some.iter().map(|one| &**one).collect::<Vec<_>>().join(", ");
        write!(f, "{} may {methods} in ", callers.join(", "))?;
        match accounts {
            None => f.write_str("all accounts")?,
            Some(accounts) => f.write_str(&list(accounts))?,
        }
        if let Some(services) = services {
            write!(f, ", services {}", list(services))?;
        }
        write!(f, ", PII {}", if *shows_pii { "shown" } else { "masked" })
    }
}

/// How much of an answer a caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// No identity, name, address or attributes.
    Masked,
    /// All of it.
    Whole,
}

/// The rules for all callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// None: nobody may do anything.
    pub rules: Vec<Arc<Rule>>,
}

impl Policy {
    fn of(&self, identity: &Identity) -> Vec<Arc<Rule>> {
        let address = match identity.id() {
            CallerId::Peer(address) => Some(format!("address:{address}")),
            CallerId::Named(_) | CallerId::Unknown => None,
        };
        let names = [Some(identity.name().unwrap_or("anonymous")), address.as_deref()];
        let is_meant = |rule: &Rule| {
            rule.callers.iter().any(|caller| names.iter().flatten().any(|name| caller.fits(name)))
        };
        self.rules.iter().filter(|rule| is_meant(rule)).cloned().collect()
    }
}

/// The policy as it is now, where there is one. Clones share it, with every change.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    policy: watch::Sender<Option<Arc<Policy>>>,
    /// How many there have been.
    generation: AtomicU64,
}

impl Policies {
    /// Begins with this one; `None`: everybody may do everything.
    pub fn new(policy: Option<Policy>) -> Self {
        let policies = Self::default();
        policy.into_iter().for_each(|policy| policies.replace(policy));
        policies
    }

    /// From now on this one holds.
    pub fn replace(&self, policy: Policy) {
        self.0.policy.send_modify(|current| {
            *current = Some(Arc::new(policy));
            // Within the lock: whoever sees the new number finds the new policy, and whoever is woken sees the new number.
            self.0.generation.fetch_add(1, Ordering::Release);
        });
    }

    /// The one that holds.
    pub fn current(&self) -> Option<Policy> {
        self.0.policy.borrow().as_deref().cloned()
    }

    /// What this caller may do, now and after every change.
    pub fn granted(&self, identity: &Identity) -> Granted {
        Granted { policies: self.clone(), identity: identity.clone(), current: RwLock::default() }
    }
}

/// What one caller may do.
#[derive(Debug)]
pub struct Granted {
    policies: Policies,
    identity: Identity,
    current: RwLock<Current>,
}

/// The rules for one caller, of the policy with this number.
#[derive(Debug, Default)]
struct Current {
    generation: u64,
    rules: Vec<Arc<Rule>>,
}

impl Current {
    fn sight(&self, method: Method, account: &str, service: &str) -> Option<Sight> {
        let allowing = self.rules.iter().filter(|rule| rule.allows(method, account, service));
        allowing.map(|rule| if rule.shows_pii { Sight::Whole } else { Sight::Masked }).max()
    }
}

impl Granted {
    /// How much the caller sees of what it asks for there; `None`: it may not ask. `service` is empty where none is named.
    pub fn sight(&self, method: Method, account: &str, service: &str) -> Option<Sight> {
        let generation = self.policies.0.generation.load(Ordering::Acquire);
        if generation == 0 {
            return Some(Sight::Whole);
        }
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        if current.generation == generation {
            return current.sight(method, account, service);
        }
        drop(current);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let policy = self.policies.0.policy.borrow().clone();
        *current =
            Current { generation, rules: policy.map(|policy| policy.of(&self.identity)).unwrap_or_default() };
        current.sight(method, account, service)
    }

    /// Tells of every change of the policy from now on.
    pub fn changes(&self) -> PolicyChanges {
        PolicyChanges(self.policies.0.policy.subscribe())
    }
}

/// Tells of changes of the policy.
#[derive(Debug)]
pub struct PolicyChanges(watch::Receiver<Option<Arc<Policy>>>);

impl PolicyChanges {
    /// Waits for the next.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::*;

    const CALLERS: [&str; 6] = [
        "spiffe://td/ns/a/sa/x",
        "spiffe://td/ns/a/sa/xy",
        "spiffe://td/ns/b/sa/x",
        "token:a",
        "token:ab",
        "jwt:a",
    ];
    const PATTERNS: [&str; 9] = [
        "*",
        "anonymous",
        "address:127.0.0.1",
        "spiffe://td/ns/a/*",
        "spiffe://td/ns/a/sa/x",
        "spiffe://*",
        "token:a",
        "token:a*",
        "jwt:*",
    ];
    const ACCOUNTS: [&str; 3] = ["AC1", "AC2", "AC3"];
    const SERVICES: [&str; 2] = ["IS1", "IS2"];

    /// A rule as a person would write it.
    #[derive(Clone, Debug)]
    struct Words {
        callers: Vec<&'static str>,
        accounts: Option<Vec<&'static str>>,
        services: Option<Vec<&'static str>>,
        methods: Vec<&'static str>,
        shows_pii: bool,
    }

    fn words() -> impl Strategy<Value = Words> {
        let methods = [&["*", "read", "write"][..], &Method::ALL.map(Method::name)].concat();
        (
            subsequence(PATTERNS.to_vec(), 1..4),
            proptest::option::of(subsequence(ACCOUNTS.to_vec(), 1..3)),
            proptest::option::of(subsequence(SERVICES.to_vec(), 1..3)),
            subsequence(methods, 1..4),
            any::<bool>(),
        )
            .prop_map(|(callers, accounts, services, methods, shows_pii)| Words {
                callers,
                accounts,
                services,
                methods,
                shows_pii,
            })
    }

    fn parsed(words: &Words) -> Rule {
        let set = |texts: &Vec<&str>| texts.iter().map(|text| (*text).into()).collect();
        Rule {
            callers: words.callers.iter().map(|text| Pattern::parse(text).unwrap()).collect(),
            accounts: words.accounts.as_ref().map(set),
            services: words.services.as_ref().map(set),
            methods: words
                .methods
                .iter()
                .filter_map(|word| Methods::parse(word))
                .fold(Methods::default(), Methods::with),
            shows_pii: words.shows_pii,
        }
    }

    /// What a rule says, read word by word.
    fn allows(words: &Words, caller: Option<&str>, method: Method, account: &str, service: &str) -> bool {
        let is_write =
            ["CreateParticipant", "UpdateParticipant", "DeleteParticipant"].contains(&method.name());
        let caller = words.callers.iter().any(|pattern| match (pattern.strip_suffix('*'), caller) {
            (Some(begin), Some(name)) => name.get(..begin.len()) == Some(begin),
            (None, Some(name)) => *pattern == name,
            (_, None) => ["*", "anonymous", "address:127.0.0.1"].contains(pattern),
        });
        let method = words.methods.iter().any(|word| match *word {
            "*" => true,
            "read" => !is_write,
            "write" => is_write,
            name => name == method.name(),
        });
        let account = words.accounts.as_ref().is_none_or(|some| some.contains(&account));
        let service = words.services.as_ref().is_none_or(|some| some.contains(&service));
        caller && method && account && service
    }

    fn identity(caller: Option<&str>) -> Identity {
        caller.map_or_else(
            || Identity::of_address([127, 0, 0, 1].into()),
            |name| Identity::proven(crate::access::Proof::Token, name),
        )
    }

    proptest! {
        #[test]
        fn a_policy_says_what_its_rules_say(
            first in proptest::collection::vec(words(), 0..6),
            second in proptest::collection::vec(words(), 0..6),
            caller in proptest::option::of(select(CALLERS.to_vec())),
        ) {
            let policies = Policies::default();
            let granted = policies.granted(&identity(caller));
            prop_assert_eq!(granted.sight(Method::Delete, "AC9", ""), Some(Sight::Whole), "without a policy");
            for rules in [first, second] {
                policies.replace(Policy { rules: rules.iter().map(|words| Arc::new(parsed(words))).collect() });
                for method in Method::ALL {
                    for account in ACCOUNTS.into_iter().chain(["AC9", ""]) {
                        for service in SERVICES.into_iter().chain(["IS9", ""]) {
                            let allowing: Vec<_> =
                                rules.iter().filter(|words| allows(words, caller, method, account, service)).collect();
                            let expected = match allowing.iter().any(|words| words.shows_pii) {
                                true => Some(Sight::Whole),
                                false if allowing.is_empty() => None,
                                false => Some(Sight::Masked),
                            };
                            prop_assert_eq!(granted.sight(method, account, service), expected);
                        }
                    }
                }
            }
        }

        #[test]
        fn no_text_is_a_pattern_of_more_than_it_says(text in prop_oneof!["\\PC{0,20}", "(token:|dns:|\\*|anonymous){0,2}[a-c*]{0,3}"], name in select(CALLERS.to_vec())) {
            if let Ok(pattern) = Pattern::parse(&text) {
                let expected = text == name || text.strip_suffix('*').is_some_and(|begin| name.starts_with(begin));
                prop_assert_eq!((pattern.fits(name), pattern.to_string()), (expected, text));
            }
        }
    }

    #[test]
    fn a_pattern_that_could_never_fit_is_refused() {
        for text in [
            "",
            "x",
            "spiffe:/td",
            "token:",
            "anonymous*",
            "a*",
            "**",
            "token:a*b",
            "dns:*.internal",
            "Token:a",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
