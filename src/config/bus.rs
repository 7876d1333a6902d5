//! Through what replicas tell each other what they are told.

use std::time::Duration;

use super::{Bus, Sources, duration, number};
use crate::participants::{RedisSettings, RedisUrlSource};

pub(super) fn read(sources: &mut Sources<'_>) -> Bus {
    let (url, file) = ("redis.url", "redis.url_file");
    if let (Some(place), Some(file_place)) = (sources.place(url), sources.place(file)) {
        sources.problem(place, format!("cannot be set beside {file_place}"));
    }
    let url = sources.optional(url, |text| text.parse().map(RedisUrlSource::Value));
    let url = url.or(sources.optional(file, RedisUrlSource::file));
    let key_prefix = sources.optional("redis.key_prefix", key_prefix).unwrap_or_default();
    let max_len = sources.required("redis.max_len", |text| number(text, 1000, 100_000_000));
    let retention = sources.required("redis.retention", retention);
    url.map_or(Bus::Local, |url| Bus::Redis(RedisSettings { url, key_prefix, max_len, retention }))
}

fn key_prefix(text: &str) -> Result<String, &'static str> {
    // Braces would end the part of a key that decides where in a cluster it stands.
    let is_plain = text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}');
    is_plain.then(|| text.to_owned()).ok_or("must be at most 128 letters, digits and signs, without braces")
}

/// Below a minute, what is away for a moment would lose everything.
fn retention(text: &str) -> Result<Duration, &'static str> {
    let is_long = |retention: &Duration| *retention >= Duration::from_secs(60);
    duration(text).ok().filter(is_long).ok_or("must be a duration from 1m to a day")
}
