//! Credentials that change while calls are under way, in the order that suits Twilio or in the one that does not: no call
//! fails.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Code, Status};

use crate::accounts::{read, refused_requests};
use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

/// A folder as Kubernetes mounts a secret: the file is a link through `..data`, which is swapped for another folder.
struct Mount {
    folder: tempfile::TempDir,
    version: u32,
}

impl Mount {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink("..data/secret", folder.path().join("secret")).unwrap();
        let mut mount = Self { folder, version: 0 };
        mount.swap(Some(text));
        mount
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    /// Without a text the new folder has no such file.
    fn swap(&mut self, text: Option<&str>) {
        let (folder, old) = (self.folder.path().to_owned(), format!("..{}", self.version));
        self.version += 1;
        let new = format!("..{}", self.version);
        std::fs::create_dir(folder.join(&new)).unwrap();
        if let Some(text) = text {
            std::fs::write(folder.join(&new).join("secret"), format!("{text}\n")).unwrap();
        }
        symlink(&new, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        if self.version > 1 {
            std::fs::remove_dir_all(folder.join(old)).unwrap();
        }
    }
}

/// What an account signs in with, whose secret stands in a file.
#[derive(Clone, Copy, Debug)]
enum Kind {
    AuthToken,
    ApiKey,
    OAuth,
}

const KINDS: [Kind; 3] = [Kind::AuthToken, Kind::ApiKey, Kind::OAuth];

/// In front of a sandbox, whose account has these keys.
async fn start(keys: &str, reload_interval: &str) -> Gateway {
    let sid = sandbox::ACCOUNT_SID;
    let file = |url: &str| {
        format!(
            "upstream.url = {url:?}\nupstream.token_url = \"{url}/v2/token\"\n\
             secrets.reload_interval = {reload_interval:?}\n[[accounts]]\naccount_sid = {sid:?}\n{keys}\n"
        )
    };
    Gateway::configured(sandbox::Settings::default(), file).await
}

impl Kind {
    async fn start(self, mount: &Mount, reload_interval: &str) -> Gateway {
        let path = mount.path();
        let keys = match self {
            Self::AuthToken => format!("auth_token_file = {path:?}"),
            Self::ApiKey => format!("api_key = {:?}\napi_secret_file = {path:?}", sandbox::API_KEY_SID),
            Self::OAuth => {
                format!("client_id = {:?}\nclient_secret_file = {path:?}", sandbox::OAUTH_CLIENT_ID)
            }
        };
        start(&keys, reload_interval).await
    }

    /// From now on Twilio takes this secret and no other.
    async fn accept(self, twilio: &Control, secret: &str) {
        twilio
            .credentials(match self {
                Self::AuthToken => json!({ "auth_tokens": [secret] }),
                Self::ApiKey => json!({ "api_secret": secret }),
                Self::OAuth => json!({ "client_secret": secret, "revoke_tokens": true }),
            })
            .await;
    }
}

async fn bad_files(gateway: &Gateway) -> f64 {
    Scrape::of(gateway).await.sum("participant_secrets_bad_files", &[])
}

/// Calls until it was so. None of the calls may fail.
async fn reading_until(gateway: &mut Gateway, face: Face, is_so: impl AsyncFn(&Gateway) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so(gateway).await {
        assert!(Instant::now() < deadline, "it does not come about");
        read(gateway, face).await.unwrap();
    }
}

on_both_versions! {
    /// The gateway has the new secret first, and goes on with the old one until that is refused.
    async fn the_file_changes_before_twilio_does(face) {
        for kind in [Kind::AuthToken, Kind::ApiKey] {
            let mut mount = Mount::new("sandbox");
            let mut gateway = kind.start(&mount, "20ms").await;
            read(&mut gateway, face).await.unwrap();
            mount.swap(Some("new"));
            reading_until(&mut gateway, face, async |gateway| refused_requests(gateway).await == 1.0).await;
            kind.accept(&gateway.sandbox, "new").await;
            gateway.create(face.create(face.newcomer(1))).await.unwrap();
            gateway.sandbox.forget_requests().await;
            read(&mut gateway, face).await.unwrap();
            assert_eq!(gateway.sandbox.count().await, 1, "{kind:?}: what is good is remembered");
        }
    }

    /// Twilio refuses what the file still holds: the call waits for the file, which is read before its time.
    async fn twilio_changes_before_the_file_does(face) {
        for kind in KINDS {
            let mut mount = Mount::new("sandbox");
            let mut gateway = kind.start(&mount, "1day").await;
            read(&mut gateway, face).await.unwrap();
            kind.accept(&gateway.sandbox, "new").await;
            let mut client = gateway.client.clone();
            let create = face.create(face.newcomer(1));
            let call = tokio::spawn(async move { client.create_participant(create).await });
            let deadline = Instant::now() + PATIENCE;
            while refused_requests(&gateway).await < 1.0 {
                assert!(Instant::now() < deadline, "the call is refused first");
            }
            mount.swap(Some("new"));
            call.await.unwrap().unwrap();
            assert_eq!(gateway.list(face.list()).await.unwrap().participants.len(), 4, "{kind:?}");
        }
    }

    /// Twilio changes no key's secret: it makes another key, with another SID.
    async fn a_sid_in_a_file_changes_with_its_secret(face) {
        let other = format!("SK{}", "9".repeat(32));
        let (mut sid, mut secret) = (Mount::new(&other), Mount::new("other"));
        let keys = format!("api_key_file = {:?}\napi_secret_file = {:?}", sid.path(), secret.path());
        let mut gateway = start(&keys, "20ms").await;
        let mut client = gateway.client.clone();
        let call = tokio::spawn(async move { client.get_participant(face.get_fresh()).await });
        let deadline = Instant::now() + PATIENCE;
        while refused_requests(&gateway).await < 1.0 {
            assert!(Instant::now() < deadline, "the call is refused first");
        }
        // Two mounts do not change at the same moment.
        secret.swap(Some("sandbox"));
        sid.swap(Some(sandbox::API_KEY_SID));
        call.await.unwrap().unwrap();

        let refused = refused_requests(&gateway).await;
        sid.swap(Some(&other));
        reading_until(&mut gateway, face, async |gateway| refused_requests(gateway).await > refused).await;
        let refused = refused_requests(&gateway).await;
        secret.swap(Some("other"));
        reading_until(&mut gateway, face, async |gateway| refused_requests(gateway).await > refused).await;
    }

    async fn a_file_that_goes_bad_keeps_the_last_good_secret(face) {
        let mut mount = Mount::new("sandbox");
        let mut gateway = Kind::AuthToken.start(&mount, "20ms").await;
        assert_eq!(bad_files(&gateway).await, 0.0);
        for bad in [None, Some(""), Some("two\nlines"), Some("\0")] {
            mount.swap(bad);
            reading_until(&mut gateway, face, async |gateway| bad_files(gateway).await == 1.0).await;
            mount.swap(Some("sandbox"));
            reading_until(&mut gateway, face, async |gateway| bad_files(gateway).await == 0.0).await;
        }
        assert_eq!(refused_requests(&gateway).await, 0.0);
    }

    /// Whoever writes into the file in place is seen between two halves, and the old secret is the good one all the while.
    async fn a_file_that_is_written_in_two_parts_loses_no_call(face) {
        let mut mount = Mount::new("sandbox");
        let mut gateway = Kind::AuthToken.start(&mount, "20ms").await;
        read(&mut gateway, face).await.unwrap();
        for (content, refusals) in [("ne", 1.0), ("new", 2.0)] {
            mount.swap(Some(content));
            reading_until(&mut gateway, face, async |gateway| refused_requests(gateway).await == refusals).await;
        }
        Kind::AuthToken.accept(&gateway.sandbox, "new").await;
        read(&mut gateway, face).await.unwrap();
    }

    async fn a_page_token_outlives_the_secret_that_sealed_it(face) {
        let mut mount = Mount::new("sandbox");
        let mut gateway = Kind::AuthToken.start(&mount, "20ms").await;
        let page = |token: &str| ListParticipantsRequest { page_size: 1, page_token: token.into(), ..face.list() };
        let first = gateway.list(page("")).await.unwrap();
        mount.swap(Some("new"));
        reading_until(&mut gateway, face, async |gateway| refused_requests(gateway).await == 1.0).await;
        let second = gateway.list(page(&first.next_page_token)).await.unwrap();
        assert_ne!(first.participants, second.participants);
        let again = gateway.list(page(&second.previous_page_token)).await.unwrap();
        assert_eq!(first.participants, again.participants);
    }

    async fn the_key_of_page_tokens_changes_in_its_file(face) {
        let mut mount = Mount::new("the-first-of-the-keys");
        let (path, second) = (mount.path(), "the-second-of-the-keys");
        let key_file = ("GATEWAY_PAGE_TOKEN_KEY_FILE", path.to_str().unwrap());
        let often = ("GATEWAY_SECRETS_RELOAD_INTERVAL", "20ms");
        let mut gateway = Gateway::with(&[key_file, often]).await;
        let page = |token: &str| ListParticipantsRequest { page_size: 1, page_token: token.into(), ..face.list() };
        let token = gateway.list(page("")).await.unwrap().next_page_token;
        mount.swap(Some(second));
        let mut other = Gateway::with(&[("GATEWAY_PAGE_TOKEN_KEY", second)]).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sealed = gateway.list(page("")).await.unwrap().next_page_token;
            if other.list(page(&sealed)).await.is_ok() {
                break;
            }
            assert!(Instant::now() < deadline, "the file is not read again");
        }
        gateway.list(page(&token)).await.unwrap();
        let refused = other.list(page(&token)).await.unwrap_err();
        assert_eq!(told(&refused), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()));
    }

    /// Nobody changes the file: the calls that were under way wait for it for a while, and those after them do not.
    async fn a_secret_that_is_refused_for_good_is_told(face) {
        let mount = Mount::new("sandbox");
        let mut gateway = Kind::AuthToken.start(&mount, "20ms").await;
        read(&mut gateway, face).await.unwrap();
        Kind::AuthToken.accept(&gateway.sandbox, "another").await;
        let rejected = (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".into());
        assert_eq!(told(&read(&mut gateway, face).await.unwrap_err()), rejected);
        let at_once = timeout(Duration::from_secs(4), read(&mut gateway, face)).await;
        assert_eq!(told(&at_once.expect("it does not wait again").unwrap_err()), rejected);
        Kind::AuthToken.accept(&gateway.sandbox, "sandbox").await;
        read(&mut gateway, face).await.unwrap();
    }

    /// Such as those of a key that lacks a permission: the calls to the other API, which go well, change nothing about it.
    async fn a_secret_that_one_api_refuses_is_waited_for_once(face) {
        let mount = Mount::new("sandbox");
        let mut gateway = Kind::AuthToken.start(&mount, "20ms").await;
        let other = if face == Face::V1 { Face::V2 } else { Face::V1 };
        gateway.sandbox.fault(json!({ "match": { "api": face.api() }, "status": 401, "code": 20003 })).await;
        let rejected = (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".into());
        assert_eq!(told(&read(&mut gateway, face).await.unwrap_err()), rejected);
        for _ in 0..3 {
            read(&mut gateway, other).await.unwrap();
            gateway.sandbox.forget_requests().await;
            let at_once = timeout(Duration::from_secs(4), read(&mut gateway, face)).await;
            assert_eq!(told(&at_once.expect("it does not wait again").unwrap_err()), rejected);
            assert_eq!(gateway.sandbox.count().await, 1);
        }
    }
}

/// What a load came to.
#[derive(Debug, Default)]
struct Tally {
    calls: u32,
    rotations: u32,
    failures: Vec<Status>,
}

/// 200 calls a second for so long, reads past the cache and writes on both versions, while the secret changes all the time.
async fn rotate_under_load(kind: Kind, duration: Duration) -> Tally {
    let mut mount = Mount::new("sandbox");
    let gateway = kind.start(&mount, "100ms").await;
    let (answered, rounds) = watch::channel(Instant::now());
    let rotating = rotate(kind, gateway.sandbox.clone(), duration, &mut mount, rounds);
    let calling = call(&gateway, duration, answered);
    let (rotations, mut tally) = tokio::join!(rotating, calling);
    tally.rotations = rotations;
    println!("{kind:?}: {tally:?}, {} requests refused", refused_requests(&gateway).await);
    tally
}

async fn call(gateway: &Gateway, duration: Duration, answered: watch::Sender<Instant>) -> Tally {
    let (began, mut pace, mut calls) = (Instant::now(), interval(Duration::from_millis(5)), JoinSet::new());
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tally = Tally::default();
    while began.elapsed() < duration {
        pace.tick().await;
        let (call, answered, began) =
            (nth_call(gateway.client.clone(), tally.calls), answered.clone(), Instant::now());
        calls.spawn(async move {
            let result = call.await;
            answered.send_if_modified(|latest| std::mem::replace(latest, began.max(*latest)) < began);
            result
        });
        tally.calls += 1;
    }
    tally.failures = calls.join_all().await.into_iter().filter_map(Result::err).collect();
    tally
}

async fn nth_call(mut client: Client, number: u32) -> Result<(), Status> {
    let face = if number.is_multiple_of(2) { Face::V1 } else { Face::V2 };
    let fresh = || ListParticipantsRequest { read_options: max_age(Duration::ZERO), ..face.list() };
    match number / 2 % 5 {
        0 | 1 => client.get_participant(face.get_fresh()).await.map(|_| ()),
        2 => client.update_participant(face.update(face.marked(&number.to_string()))).await.map(|_| ()),
        3 if number.is_multiple_of(3) => {
            let newcomer = face.newcomer(u16::try_from(number).expect("a load has a few thousand calls"));
            client.create_participant(face.create(newcomer)).await.map(|_| ())
        }
        _ => client.list_participants(fresh()).await.map(|_| ()),
    }
}

/// The file before Twilio and Twilio before the file, by turns, with pauses of other lengths each time. `answered` tells when
/// the last call began that has been answered: on a busy machine the changes must not outrun the calls, because the gateway
/// keeps the last few secrets only.
async fn rotate(
    kind: Kind,
    twilio: Control,
    duration: Duration,
    mount: &mut Mount,
    mut answered: watch::Receiver<Instant>,
) -> u32 {
    let (began, mut pace, mut rotations) = (Instant::now(), interval(Duration::from_millis(30)), 0);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < duration {
        rotations += 1;
        let secret = format!("secret-{rotations}");
        let pauses = 1 + rotations % 7;
        let is_file_first = rotations % 2 == 0;
        if is_file_first {
            mount.swap(Some(&secret));
        } else {
            kind.accept(&twilio, &secret).await;
        }
        for _ in 0..pauses {
            pace.tick().await;
        }
        if is_file_first {
            kind.accept(&twilio, &secret).await;
        } else {
            mount.swap(Some(&secret));
        }
        let changed = Instant::now();
        for _ in 0..pauses {
            pace.tick().await;
        }
        // An error: the calls have ended.
        let _ = answered.wait_for(|began| *began > changed).await;
    }
    rotations
}

#[tokio::test(flavor = "multi_thread")]
async fn two_seconds_of_rotation_under_load_lose_no_call() {
    for kind in KINDS {
        let tally = rotate_under_load(kind, Duration::from_secs(2)).await;
        assert!(tally.failures.is_empty(), "{kind:?}: {tally:#?}");
        assert!(tally.calls > 300 && tally.rotations > 3, "{kind:?}: {tally:?}");
    }
}

/// `cargo test --test gateway rotation -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes most of a minute"]
async fn fifteen_seconds_of_rotation_under_load_lose_no_call() {
    for kind in KINDS {
        let tally = rotate_under_load(kind, Duration::from_secs(15)).await;
        assert!(tally.failures.is_empty(), "{kind:?}: {tally:#?}");
        assert!(tally.calls > 2900 && tally.rotations > 20, "{kind:?}: {tally:?}");
    }
}
