//! How callers prove who they are.

use std::path::PathBuf;

use super::source::Sources;
use crate::access::{Mode, Tokens, Way};

const NOT_BESIDE: &str = "open cannot stand beside another mode: nobody would have to prove anything";
const TWICE: &str = "must not name a mode twice";

/// The modes, in their order; `None` where they are wrong, which is then a problem.
pub(super) fn modes(sources: &mut Sources<'_>) -> Option<Vec<Mode>> {
    match sources.place("auth.mode") {
        None => Some(Vec::new()),
        Some(_) => sources.optional("auth.mode", parse),
    }
}

fn parse(text: &str) -> Result<Vec<Mode>, String> {
    let mut modes: Vec<Mode> = Vec::new();
    for word in text.split(',') {
        let mode = word.trim().parse::<Mode>().map_err(|error| error.to_string())?;
        if modes.contains(&mode) {
            return Err(TWICE.to_owned());
        }
        modes.push(mode);
    }
    if modes.len() > 1 && modes.contains(&Mode::Open) { Err(NOT_BESIDE.to_owned()) } else { Ok(modes) }
}

/// The ways that these modes mean, with what they need.
pub(super) fn ways(sources: &mut Sources<'_>, modes: &[Mode]) -> Vec<Way> {
    let tokens = tokens(sources, modes);
    let way = |mode: &Mode| match mode {
        Mode::Mtls => Some(Way::Certificate),
        Mode::Tokens => tokens.clone().map(Way::Tokens),
        Mode::Jwt | Mode::Mesh | Mode::Open => None,
    };
    modes.iter().filter_map(way).collect()
}

fn tokens(sources: &mut Sources<'_>, modes: &[Mode]) -> Option<Tokens> {
    const FILE: &str = "auth.tokens_file";
    if is_needed(sources, modes, Mode::Tokens, &[FILE]) && sources.place(FILE).is_none() {
        let place = sources.place("auth.mode").unwrap_or_default();
        sources.problem(place, format!("tokens requires {FILE}"));
    }
    sources.optional(FILE, |path| Tokens::read(PathBuf::from(path)))
}

/// Whether the mode is on. Where it is not, none of its settings may be set: whoever sets one relies on it.
fn is_needed(sources: &mut Sources<'_>, modes: &[Mode], mode: Mode, settings: &[&str]) -> bool {
    let is_on = modes.contains(&mode);
    for setting in settings {
        if let Some(place) = sources.place(setting).filter(|_| !is_on) {
            sources.problem(place, format!("means nothing without auth.mode={mode}"));
        }
    }
    is_on
}
