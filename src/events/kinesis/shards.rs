//! Which shards are to be read, and from where. A shard that was split or merged is read to its end before those that came of
//! it, so that what was put into the stream for one key stays in order.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// Where reading goes on in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At its tip.
    Now,
    /// At its first record after the moment: nothing was read from it yet.
    Since(SystemTime),
    /// After the record with this number.
    After(String),
    /// At the oldest record that AWS still has.
    Oldest,
    /// Nowhere: it was read to its end.
    Ended,
}

/// A shard of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    /// Those that it came of.
    pub(super) parents: Vec<String>,
    /// Whether records still go there.
    pub(super) is_open: bool,
}

/// The places of the shards, by their ids.
pub(super) type Places = BTreeMap<String, Place>;

/// The places as a text that [`from_text`] reads.
pub(super) fn to_text(places: &Places) -> String {
    let places: Map<_, _> = places.iter().map(|(id, place)| (id.clone(), place.to_string().into())).collect();
    Value::Object(places).to_string()
}

/// None where the text is of another build, or of nobody.
pub(super) fn from_text(text: &str) -> Option<Places> {
    let places: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
    places.into_iter().map(|(id, place)| Some((id, place.parse().ok()?))).collect()
}

/// What is to be done about a stream's shards.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where each shard stands. Those that AWS no longer has are not in it.
    pub(super) places: Places,
    /// Those that can be read now.
    pub(super) readable: Vec<String>,
    /// Whether records went away before they were read.
    pub(super) has_lost: bool,
}

impl Plan {
    /// With no place known, reading begins now.
    pub(super) fn new(shards: &[Listed], known: &Places) -> Self {
        // Ids come again in a stream that was deleted and created anew.
        let is_another = |shard: &Listed| shard.is_open && known.get(&shard.id) == Some(&Place::Ended);
        let place_of = |shard: &Listed| match known.get(&shard.id) {
            _ if is_another(shard) => Place::Oldest,
            Some(place) => place.clone(),
            None if !known.is_empty() => Place::Oldest,
            None if shard.is_open => Place::Now,
            None => Place::Ended,
        };
        let places: Places = shards.iter().map(|shard| (shard.id.clone(), place_of(shard))).collect();
        let is_done = |id: &String| places.get(id).is_none_or(|place| *place == Place::Ended);
        let is_readable = |shard: &&Listed| {
            let has_begun = known.contains_key(&shard.id);
            !is_done(&shard.id) && (known.is_empty() || has_begun || shard.parents.iter().all(is_done))
        };
        let readable: Vec<_> = shards.iter().filter(is_readable).map(|shard| shard.id.clone()).collect();
        let has_lost = shards.iter().any(is_another)
            || known.iter().any(|(id, place)| *place != Place::Ended && !places.contains_key(id));
        // A shard that waits for another has no place yet: where that one is known, it would look as if it had begun.
        let waits: HashSet<_> =
            places.keys().filter(|id| !is_done(id) && !readable.contains(id)).cloned().collect();
        let places = places.into_iter().filter(|(id, _)| !waits.contains(id)).collect();
        Self { places, readable, has_lost }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Since(moment) => {
                let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
                write!(f, "since {}", since.as_millis())
            }
            Self::After(number) => write!(f, "after {number}"),
            Self::Oldest => f.write_str("oldest"),
            Self::Ended => f.write_str("ended"),
        }
    }
}

/// The text is none of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        match text.split_once(' ') {
            None if text == "now" => Ok(Self::Now),
            None if text == "oldest" => Ok(Self::Oldest),
            None if text == "ended" => Ok(Self::Ended),
            Some(("since", millis)) => {
                let since = millis.parse().map(Duration::from_millis).map_err(|_| NoPlace)?;
                UNIX_EPOCH.checked_add(since).map(Self::Since).ok_or(NoPlace)
            }
            Some(("after", number)) if !number.is_empty() => Ok(Self::After(number.to_owned())),
            _ => Err(NoPlace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, parents: &[&str], is_open: bool) -> Listed {
        Listed { id: id.into(), parents: parents.iter().map(ToString::to_string).collect(), is_open }
    }

    fn known(places: &[(&str, Place)]) -> Places {
        places.iter().map(|(id, place)| (id.to_string(), place.clone())).collect()
    }

    fn after(number: &str) -> Place {
        Place::After(number.into())
    }

    #[test]
    fn without_a_place_reading_begins_now_and_closed_shards_are_past() {
        let plan = Plan::new(&[shard("a", &[], false), shard("b", &["a"], true)], &Places::new());
        assert_eq!(plan.readable, ["b"]);
        assert_eq!(plan.places, known(&[("a", Place::Ended), ("b", Place::Now)]));
        assert!(!plan.has_lost);
    }

    #[test]
    fn a_child_waits_for_all_its_parents_and_begins_with_its_oldest_record() {
        let shards = [shard("a", &[], false), shard("b", &[], false), shard("c", &["a", "b"], true)];
        let plan = Plan::new(&shards, &known(&[("a", Place::Ended), ("b", after("7"))]));
        assert_eq!(plan.readable, ["b"]);
        assert!(!plan.places.contains_key("c"));
        let plan = Plan::new(&shards, &known(&[("a", Place::Ended), ("b", Place::Ended)]));
        assert_eq!(plan.readable, ["c"]);
        assert_eq!(plan.places["c"], Place::Oldest);
    }

    #[test]
    fn a_grandchild_waits_as_long_as_its_parent_waits() {
        let shards = [shard("a", &[], false), shard("b", &["a"], false), shard("c", &["b"], true)];
        let plan = Plan::new(&shards, &known(&[("a", after("7"))]));
        assert_eq!(plan.readable, ["a"]);
        assert_eq!(plan.places, known(&[("a", after("7"))]));
    }

    #[test]
    fn a_shard_that_has_begun_goes_on_whatever_its_parents() {
        let shards = [shard("a", &[], false), shard("b", &["a"], true)];
        let plan = Plan::new(&shards, &known(&[("a", Place::Ended), ("b", after("9"))]));
        assert_eq!((plan.readable, plan.places["b"].clone()), (vec!["b".to_owned()], after("9")));
    }

    #[test]
    fn a_shard_that_is_gone_unread_is_a_loss_and_holds_up_nobody() {
        let shards = [shard("b", &["a"], true)];
        let plan = Plan::new(&shards, &known(&[("a", after("7"))]));
        assert_eq!(
            plan,
            Plan { places: known(&[("b", Place::Oldest)]), readable: vec!["b".into()], has_lost: true }
        );
        assert!(!Plan::new(&shards, &known(&[("a", Place::Ended)])).has_lost);
    }

    #[test]
    fn an_open_shard_that_had_ended_is_another_streams_and_is_read_whole() {
        let plan = Plan::new(&[shard("a", &[], true)], &known(&[("a", Place::Ended)]));
        assert_eq!(
            plan,
            Plan { places: known(&[("a", Place::Oldest)]), readable: vec!["a".into()], has_lost: true }
        );
    }

    #[test]
    fn places_are_read_as_they_were_written() {
        let places = known(&[("a", Place::Ended), ("b", after("7"))]);
        assert_eq!(to_text(&places), r#"{"a":"ended","b":"after 7"}"#);
        assert_eq!(from_text(&to_text(&places)), Some(places));
        for text in ["", "[]", r#"{"a":7}"#, r#"{"a":"elsewhere"}"#] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let since = Place::Since(UNIX_EPOCH + Duration::from_millis(1_795_640_209_567));
        for place in [
            Place::Now,
            since,
            after("49590338271490256608559692538361571095921575989136588898"),
            Place::Oldest,
            Place::Ended,
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for text in
            ["", "after", "after ", "since", "since x", "since 99999999999999999999", "Now", "elsewhere 7"]
        {
            assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
        }
    }
}
