//! The store's promises that no caller outside can time well enough to test.

mod stale;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::ids::ApiVersion;

impl Failure for Infallible {
    fn is_the_leaders(&self) -> bool {
        match *self {}
    }
}

impl Failure for &str {
    fn is_the_leaders(&self) -> bool {
        *self == "impatient"
    }
}

fn cache(ttl: Duration, negative_ttl: Duration) -> Cache<String> {
    kept(ttl, Duration::ZERO, negative_ttl)
}

fn kept(ttl: Duration, grace: Duration, negative_ttl: Duration) -> Cache<String> {
    let settings = Settings { ttl, grace, negative_ttl, max_bytes: 1 << 20 };
    let traits =
        Traits { weight: |value: &String| value.len() as u32, is_negative: |value: &String| value == "none" };
    Cache::new(&settings, &traits, TaskTracker::new(), Metrics::new(None).unwrap())
}

fn long() -> Cache<String> {
    cache(Duration::from_secs(60), Duration::from_secs(60))
}

fn conversation(account: char, id: &str) -> Conversation {
    Conversation {
        account: AccountId::parse(&format!("AC{}", account.to_string().repeat(32))).unwrap(),
        service: None,
        version: ApiVersion::V1,
        id: Segment::parse(id).unwrap(),
    }
}

fn alice(cache: &Cache<String>, conversation: &Conversation) -> Key {
    cache.key(Scope::Conversation(conversation.clone()), Item::Participant(Segment::parse("alice").unwrap()))
}

/// Of any age.
const ANY: Wanted = Wanted::Within(Duration::MAX);
/// Younger than anything that is there.
const NEW: Wanted = Wanted::Within(Duration::ZERO);

async fn get(cache: &Cache<String>, key: Key, value: &'static str) -> (String, CacheStatus) {
    get_within(cache, &key, ANY, value).await
}

async fn get_within(
    cache: &Cache<String>,
    key: &Key,
    wanted: Wanted,
    value: &'static str,
) -> (String, CacheStatus) {
    let load = || async { Ok::<_, Infallible>(value.to_owned()) };
    let loaded = cache.get_or_load(key, wanted, load).await.unwrap();
    (loaded.value, loaded.status)
}

/// Ten times what it can hold, as whoever guesses ids would bring.
#[tokio::test]
async fn any_number_of_ids_stays_within_the_weight_and_what_is_in_use_stays() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    get(&cache, alice(&cache, &chat), "a").await;
    for number in 0..20_000 {
        let id = Segment::parse(&format!("guessed-{number}")).unwrap();
        get(&cache, cache.key(Scope::Conversation(chat.clone()), Item::Participant(id)), "none").await;
        if number % 500 == 0 {
            assert_eq!(get(&cache, alice(&cache, &chat), "b").await.1, CacheStatus::Hit, "after {number}");
        }
    }
    cache.entries.run_pending_tasks().await;
    assert!(cache.entries.weighted_size() <= 1 << 20, "{}", cache.entries.weighted_size());
    assert!((100..2000).contains(&cache.entries.entry_count()), "{}", cache.entries.entry_count());
}

#[tokio::test]
async fn a_value_is_loaded_once_and_then_hit() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    assert_eq!(get(&cache, alice(&cache, &chat), "a").await, ("a".into(), CacheStatus::Miss));
    assert_eq!(get(&cache, alice(&cache, &chat), "b").await, ("a".into(), CacheStatus::Hit));
}

#[tokio::test]
async fn what_was_loading_when_it_was_forgotten_is_never_served() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let (started, has_started) = oneshot::channel();
    let (release, released) = oneshot::channel::<()>();
    let channels = std::sync::Mutex::new(Some((started, released)));
    let slow = tokio::spawn({
        let (cache, key) = (cache.clone(), alice(&cache, &chat));
        async move {
            let load = || {
                let channels = channels.lock().unwrap().take();
                async move {
                    let (started, released) = channels.unwrap();
                    started.send(()).unwrap();
                    released.await.unwrap();
                    Ok::<_, Infallible>("old".to_owned())
                }
            };
            cache.get_or_load(&key, ANY, load).await.unwrap().value
        }
    });
    has_started.await.unwrap();

    cache.forget(&chat.account, &chat.id);
    // Neither joined while it loads, nor found after it has ended.
    assert_eq!(get(&cache, alice(&cache, &chat), "new").await.0, "new");
    release.send(()).unwrap();
    assert_eq!(slow.await.unwrap(), "old");
    assert_eq!(get(&cache, alice(&cache, &chat), "newest").await, ("new".into(), CacheStatus::Hit));
}

#[tokio::test]
async fn a_load_goes_on_when_its_caller_has_left() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let (loads, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let load = || {
        let (loads, gate) = (loads.clone(), gate.clone());
        async move {
            loads.fetch_add(1, Ordering::SeqCst);
            drop(gate.acquire().await.unwrap());
            Ok::<_, Infallible>("a".to_owned())
        }
    };
    let key = alice(&cache, &chat);
    // Polled once, so that the load has begun, then dropped.
    tokio::select! {
        biased;
        _ = cache.get_or_load(&key, ANY, load) => unreachable!("the gate is closed"),
        () = async { while loads.load(Ordering::SeqCst) == 0 { tokio::task::yield_now().await } } => {}
    }
    gate.add_permits(1);
    let second = cache.get_or_load(&alice(&cache, &chat), ANY, load).await.unwrap();
    assert_eq!((second.value.as_str(), loads.load(Ordering::SeqCst)), ("a", 1));
}

#[tokio::test]
async fn who_leaves_while_another_loads_leaves_nothing_behind() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let gate = Arc::new(Semaphore::new(0));
    let reader = || {
        let (cache, key, gate) = (cache.clone(), alice(&cache, &chat), gate.clone());
        tokio::spawn(async move {
            let load = || {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>("a".to_owned())
                }
            };
            cache.get_or_load(&key, ANY, load).await.unwrap().value
        })
    };
    let first = reader();
    let others: Vec<_> = (0..10).map(|_| reader()).collect();
    while cache.tasks.len() < 11 {
        tokio::task::yield_now().await;
    }
    others.iter().for_each(tokio::task::JoinHandle::abort);
    while cache.tasks.len() > 1 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    assert_eq!(first.await.unwrap(), "a");
}

#[tokio::test]
async fn a_failure_is_shared_and_not_stored() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let failing = cache.get_or_load(&alice(&cache, &chat), ANY, || async { Err("down") }).await;
    assert!(matches!(failing, Err(LoadError::Failed(error)) if *error == "down"));
    assert_eq!(get(&cache, alice(&cache, &chat), "a").await.1, CacheStatus::Miss);
}

#[tokio::test]
async fn a_panicking_load_poisons_nothing() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let load = || async {
        if true {
            panic!("a bug in a mapper");
        }
        Ok::<_, Infallible>(String::new())
    };
    let outcome = cache.get_or_load(&alice(&cache, &chat), ANY, load).await;
    assert!(matches!(outcome, Err(LoadError::Panicked)));
    assert_eq!(get(&cache, alice(&cache, &chat), "a").await.1, CacheStatus::Miss);
}

#[tokio::test]
async fn that_there_is_none_is_a_value_with_its_own_lifetime() {
    let cache = cache(Duration::from_secs(60), Duration::from_millis(1));
    let chat = conversation('1', "CH1");
    assert_eq!(get(&cache, alice(&cache, &chat), "none").await.1, CacheStatus::Miss);
    let deadline = Instant::now() + Duration::from_secs(5);
    while get(&cache, alice(&cache, &chat), "a").await.0 == "none" {
        assert!(Instant::now() < deadline, "it never expired");
    }
}

#[tokio::test]
async fn too_old_for_the_caller_is_loaded_again() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    get(&cache, alice(&cache, &chat), "a").await;
    let load = || async { Ok::<_, Infallible>("b".to_owned()) };
    let fresh = cache.get_or_load(&alice(&cache, &chat), NEW, load).await.unwrap();
    assert_eq!((fresh.value.as_str(), fresh.status), ("b", CacheStatus::Miss));
}

#[tokio::test]
async fn a_slower_load_does_not_replace_a_later_one() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let key = alice(&cache, &chat);
    let (release, released) = oneshot::channel::<()>();
    let slow = cache.load(&key, async move {
        released.await.unwrap();
        Ok::<_, Infallible>("old".to_owned())
    });
    let fast = async {
        // `slow` was polled first and has noted its time.
        cache.load(&key, async { Ok::<_, Infallible>("new".to_owned()) }).await.unwrap();
        release.send(()).unwrap();
    };
    let (slow, ()) = tokio::join!(biased; slow, fast);
    assert_eq!(slow.unwrap().value, "old");
    assert_eq!(get(&cache, key, "x").await, ("new".into(), CacheStatus::Hit));
}

#[tokio::test]
async fn keys_that_look_alike_when_joined_are_distinct() {
    let cache = long();
    let pairs = [("a:b", "c"), ("a", "b:c")];
    for (id, participant) in pairs {
        let item = Item::Participant(Segment::parse(participant).unwrap());
        let key = cache.key(Scope::Conversation(conversation('1', id)), item);
        assert_eq!(get(&cache, key, id).await, (id.into(), CacheStatus::Miss));
    }
}

#[tokio::test]
async fn accounts_and_services_and_versions_do_not_share() {
    let cache = long();
    let one = conversation('1', "CH1");
    let others = [
        conversation('2', "CH1"),
        Conversation {
            service: crate::ids::ServiceId::parse(&format!("IS{}", "1".repeat(32))),
            ..one.clone()
        },
        Conversation { version: ApiVersion::V2, ..one.clone() },
    ];
    get(&cache, alice(&cache, &one), "one").await;
    for other in &others {
        assert_eq!(get(&cache, alice(&cache, other), "other").await.1, CacheStatus::Miss);
    }
    cache.forget(&one.account, &one.id);
    // Whatever the service, the conversation is the same; another account's is not.
    assert_eq!(get(&cache, alice(&cache, &others[1]), "x").await.1, CacheStatus::Miss);
    assert_eq!(get(&cache, alice(&cache, &others[0]), "x").await.1, CacheStatus::Hit);
}

#[tokio::test]
async fn an_answer_that_tells_its_own_key_is_stored_unless_something_was_forgotten() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let item = || Item::Participant(Segment::parse("alice").unwrap());
    let loaded = |value: &'static str, forget: bool| {
        let (cache, chat) = (cache.clone(), chat.clone());
        async move {
            let load = async {
                if forget {
                    cache.forget(&chat.account, &chat.id);
                }
                Ok::<_, Infallible>(value.to_owned())
            };
            cache.load_unkeyed(load, |_| Some((chat.clone(), item()))).await.unwrap();
        }
    };
    loaded("old", true).await;
    assert_eq!(get(&cache, alice(&cache, &chat), "new").await.1, CacheStatus::Miss);
    cache.forget_all();
    loaded("named", false).await;
    assert_eq!(get(&cache, alice(&cache, &chat), "x").await, ("named".into(), CacheStatus::Hit));
}

#[tokio::test]
async fn who_finds_the_load_under_way_too_old_shares_the_next_one() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let (loads, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let load = || {
        let (loads, gate) = (loads.clone(), gate.clone());
        async move {
            let number = loads.fetch_add(1, Ordering::SeqCst);
            drop(gate.acquire().await.unwrap());
            Ok::<_, Infallible>(number.to_string())
        }
    };
    let key = alice(&cache, &chat);
    let first = cache.get_or_load(&key, ANY, load);
    let late = async {
        while loads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // Nothing that began before these calls will do for them.
        let both =
            async { tokio::join!(cache.get_or_load(&key, NEW, load), cache.get_or_load(&key, NEW, load)) };
        gate.add_permits(100);
        both.await
    };
    let (first, late) = tokio::join!(first, late);
    assert_eq!(first.unwrap().value, "0");
    for loaded in [late.0.unwrap(), late.1.unwrap()] {
        assert_eq!(loaded.value, "1");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_slow_shared_load_does_not_replace_what_a_later_one_brought() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    let key = alice(&cache, &chat);
    let (started, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let slow = || {
        let (started, gate) = (started.clone(), gate.clone());
        async move {
            started.add_permits(1);
            drop(gate.acquire().await.unwrap());
            Ok::<_, Infallible>("old".to_owned())
        }
    };
    let newer = async {
        drop(started.acquire().await.unwrap());
        cache.load(&key, async { Ok::<_, Infallible>("new".to_owned()) }).await.unwrap();
        gate.add_permits(1);
    };
    let (slow, ()) = tokio::join!(cache.get_or_load(&key, ANY, slow), newer);
    assert_eq!(slow.unwrap().value, "old");
    assert_eq!(get(&cache, key, "x").await, ("new".into(), CacheStatus::Hit));
}

#[tokio::test]
async fn a_load_that_fails_leaves_what_was_there() {
    let (cache, chat) = (long(), conversation('1', "CH1"));
    get(&cache, alice(&cache, &chat), "a").await;
    let failing = cache.get_or_load(&alice(&cache, &chat), NEW, || async { Err("down") }).await;
    assert!(matches!(failing, Err(LoadError::Failed(_))));
    assert_eq!(get(&cache, alice(&cache, &chat), "x").await, ("a".into(), CacheStatus::Hit));
}

#[tokio::test]
async fn who_joined_a_load_loads_anew_where_only_its_leader_had_no_patience() {
    for (error, expected) in [("impatient", Ok("own")), ("down", Err("down"))] {
        let (cache, chat, gate) = (long(), conversation('1', "CH1"), Arc::new(Semaphore::new(0)));
        let key = alice(&cache, &chat);
        let leading = || {
            let gate = gate.clone();
            async move {
                let _permit = gate.acquire().await;
                Err::<String, _>(error)
            }
        };
        let own = || async { Ok::<_, &'static str>("own".to_owned()) };
        let release = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            gate.add_permits(1);
        };
        let (led, joined, ()) =
            tokio::join!(cache.get_or_load(&key, ANY, leading), cache.get_or_load(&key, ANY, own), release);
        assert!(matches!(led, Err(LoadError::Failed(led)) if *led == error));
        let joined = joined.map(|loaded| loaded.value).map_err(|error| match error {
            LoadError::Failed(error) => *error,
            LoadError::Panicked => "panicked",
        });
        assert_eq!(joined, expected.map(str::to_owned));
    }
}
