//! What is past its lifetime: refreshed once, and served to nobody who must not be told it.

use super::*;

/// Past its lifetime as soon as it is there, and served all the same while it is refreshed.
const STALE: Wanted = Wanted::Usual { lifetime: Duration::ZERO, while_refreshed: Duration::MAX };

fn graced() -> Cache<String> {
    kept(Duration::from_secs(60), Duration::from_secs(60), Duration::from_secs(60))
}

/// A load that counts itself, and goes on when the gate lets it.
fn counted<E>(
    loads: &Arc<AtomicU32>,
    gate: &Arc<Semaphore>,
    outcome: Result<&'static str, E>,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Result<String, E>> + Send>> + use<E>
where
    E: Clone + Send + Sync + 'static,
{
    let (loads, gate) = (loads.clone(), gate.clone());
    move || {
        let (loads, gate, outcome) = (loads.clone(), gate.clone(), outcome.clone());
        Box::pin(async move {
            loads.fetch_add(1, Ordering::SeqCst);
            drop(gate.acquire().await.unwrap());
            outcome.map(str::to_owned)
        })
    }
}

/// Waits until the value that anybody would be served is another.
async fn becomes(cache: &Cache<String>, key: &Key, value: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while cache.stale(key, Duration::MAX).await.unwrap().value != value {
        assert!(Instant::now() < deadline, "it was never refreshed");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_refresh_serves_all_who_find_a_value_past_its_lifetime() {
    let (cache, chat) = (graced(), conversation('1', "CH1"));
    let key = alice(&cache, &chat);
    get(&cache, key.clone(), "old").await;
    let (loads, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let load = counted(&loads, &gate, Ok::<_, Infallible>("new"));
    for _ in 0..100 {
        let loaded = cache.get_or_load(&key, STALE, &load).await.unwrap();
        assert_eq!((loaded.value.as_str(), loaded.status), ("old", CacheStatus::StaleRevalidating));
    }
    gate.add_permits(100);
    becomes(&cache, &key, "new").await;
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    // It may be refreshed again.
    cache.tasks.close();
    cache.tasks.wait().await;
    assert_eq!(get_within(&cache, &key, STALE, "newest").await.0, "new");
    becomes(&cache, &key, "newest").await;
}

#[tokio::test]
async fn after_a_refresh_that_failed_there_is_a_pause() {
    let (mut cache, chat) = (graced(), conversation('1', "CH1"));
    cache.refreshes = Refreshes::with_pause(Duration::from_secs(60));
    let key = alice(&cache, &chat);
    get(&cache, key.clone(), "old").await;
    let (loads, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(100)));
    let failing = counted(&loads, &gate, Err::<&str, _>("down"));
    let panicking = || async {
        if true {
            panic!("a bug in a mapper");
        }
        Ok::<_, Infallible>(String::new())
    };
    cache.tasks.close();
    for _ in 0..100 {
        let loaded = cache.get_or_load(&key, STALE, &failing).await.unwrap();
        assert_eq!((loaded.value.as_str(), loaded.status), ("old", CacheStatus::StaleRevalidating));
        cache.tasks.wait().await;
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1, "it is not asked again and again");
    // Whoever cannot be served without a load has one, whatever became of the refresh.
    assert_eq!(get_within(&cache, &key, NEW, "new").await, ("new".into(), CacheStatus::Miss));

    cache.refreshes = Refreshes::with_pause(Duration::from_millis(1));
    cache.get_or_load(&key, STALE, panicking).await.unwrap();
    cache.tasks.wait().await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while cache.get_or_load(&key, STALE, &failing).await.is_ok() && loads.load(Ordering::SeqCst) == 1 {
        assert!(Instant::now() < deadline, "it is never refreshed again");
        cache.tasks.wait().await;
    }
    cache.tasks.wait().await;
    let metrics = cache.metrics.render().unwrap();
    for counted in ["\"failed\"} 2", "\"panicked\"} 1"] {
        assert!(metrics.contains(&format!("refresh_outcome={counted}")), "{metrics}");
    }
}

#[tokio::test]
async fn what_was_forgotten_is_neither_served_stale_nor_refreshed() {
    let (cache, chat) = (graced(), conversation('1', "CH1"));
    let key = alice(&cache, &chat);
    get(&cache, key.clone(), "old").await;
    let (loads, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let load = counted(&loads, &gate, Ok::<_, Infallible>("read before the change"));
    cache.get_or_load(&key, STALE, load).await.unwrap();
    cache.forget(&chat.account, &chat.id);
    // Not even for who took the key before.
    assert!(cache.stale(&key, Duration::MAX).await.is_none());
    assert_eq!(get_within(&cache, &alice(&cache, &chat), STALE, "new").await.1, CacheStatus::Miss);
    gate.add_permits(1);
    cache.tasks.close();
    cache.tasks.wait().await;
    assert_eq!(cache.stale(&key, Duration::MAX).await.unwrap().value, "new");
}

#[tokio::test]
async fn that_there_is_none_is_never_served_stale_and_ends_what_tells_otherwise() {
    let (cache, chat) = (graced(), conversation('1', "CH1"));
    let page = || {
        let item = Item::Page { size: 1, cursor: Box::default() };
        cache.key(Scope::Conversation(chat.clone()), item)
    };
    get(&cache, alice(&cache, &chat), "alice").await;
    get(&cache, page(), "alice").await;
    assert_eq!(get_within(&cache, &alice(&cache, &chat), NEW, "none").await.0, "none");
    assert!(cache.stale(&page(), Duration::MAX).await.is_none(), "the page tells of who is gone");
    assert!(cache.stale(&alice(&cache, &chat), Duration::MAX).await.is_none());

    get(&cache, alice(&cache, &chat), "none").await;
    assert!(cache.stale(&alice(&cache, &chat), Duration::MAX).await.is_none());
    assert_eq!(
        get_within(&cache, &alice(&cache, &chat), STALE, "back").await,
        ("back".into(), CacheStatus::Miss)
    );
    get(&cache, page(), "back").await;
    // That somebody else is nowhere changes nothing.
    let bob = cache.key(Scope::Conversation(chat.clone()), Item::Participant(Segment::parse("bob").unwrap()));
    get(&cache, bob, "none").await;
    assert_eq!(get(&cache, page(), "x").await.1, CacheStatus::Hit);
}

#[tokio::test]
async fn what_is_too_old_is_served_to_nobody() {
    let (cache, chat) = (graced(), conversation('1', "CH1"));
    let key = alice(&cache, &chat);
    let began = SystemTime::now();
    get(&cache, key.clone(), "old").await;
    let stale = cache.stale(&key, Duration::from_secs(60)).await.unwrap();
    assert_eq!((stale.value.as_str(), stale.status), ("old", CacheStatus::StaleOnError));
    assert!(began <= stale.fetched && stale.fetched <= SystemTime::now());
    assert!(cache.stale(&key, Duration::ZERO).await.is_none());
    let gone = Wanted::Usual { lifetime: Duration::ZERO, while_refreshed: Duration::ZERO };
    assert_eq!(get_within(&cache, &key, gone, "new").await, ("new".into(), CacheStatus::Miss));
}

#[tokio::test]
async fn without_a_grace_nothing_outlives_its_lifetime_and_with_one_it_does() {
    let (short, chat) = (Duration::from_millis(20), conversation('1', "CH1"));
    let (without, with) = (cache(short, short), kept(short, Duration::from_secs(60), short));
    let off = kept(Duration::ZERO, Duration::from_secs(60), short);
    for cache in [&without, &with, &off] {
        get(cache, alice(cache, &chat), "a").await;
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while without.stale(&alice(&without, &chat), Duration::MAX).await.is_some() {
        assert!(Instant::now() < deadline, "it never expired");
    }
    assert!(with.stale(&alice(&with, &chat), Duration::MAX).await.is_some());
    assert!(
        off.stale(&alice(&off, &chat), Duration::MAX).await.is_none(),
        "a cache that is off keeps nothing"
    );
}

#[test]
fn what_was_loaded_together_is_not_refreshed_together() {
    let (lifetime, window) = (Duration::from_secs(1000), Duration::from_secs(50));
    let now = Instant::now();
    let wanted = Wanted::Usual { lifetime, while_refreshed: lifetime + window };
    let verdict = |nanos: u32, age: u64| {
        let fetched = SystemTime::UNIX_EPOCH + Duration::new(1, nanos);
        let stored = Stored { value: (), since: now, fetched, origin: Origin::current() };
        Asked { at: now + Duration::from_secs(age), wanted }.judge(&stored)
    };
    let fresh_after = |age| (0..256).filter(|nanos| verdict(*nanos, age) == Verdict::Fresh).count();
    assert_eq!((fresh_after(900), fresh_after(1001)), (256, 0));
    assert!((100..156).contains(&fresh_after(950)), "{}", fresh_after(950));
    for nanos in 0..256 {
        // The window counts from each one's own end.
        let begin = (900..=1000).find(|age| verdict(nanos, *age) != Verdict::Fresh).unwrap_or(1001);
        let end = (begin..1100).find(|age| verdict(nanos, *age) == Verdict::TooOld).unwrap();
        assert!((49..=51).contains(&(end - begin)), "{begin} {end}");
    }
    // A caller's own word is taken as it is.
    let stored = Stored {
        value: (),
        since: now,
        fetched: SystemTime::UNIX_EPOCH + Duration::new(1, 255),
        origin: Origin::current(),
    };
    assert!(Asked { at: now + lifetime, wanted: Wanted::Within(lifetime) }.is_fresh(&stored));
}
