//! Lists of v1, page by page.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use url::form_urlencoded;

use super::refusal::Refusal;
use super::view::{Resource, View, serial_of, sid};
use crate::sandbox::call::Call;
use crate::sandbox::store::{Cursor, Page, Tenant};

const MOST_PER_PAGE: usize = 100;

#[derive(Serialize)]
struct Listing<'a> {
    meta: Meta,
    participants: Vec<Resource<'a>>,
}

#[derive(Serialize)]
pub(super) struct Meta {
    page: u64,
    page_size: usize,
    first_page_url: String,
    previous_page_url: Option<String>,
    url: String,
    next_page_url: Option<String>,
    key: &'static str,
}

pub(super) fn list(tenant: &Tenant, index: usize, call: &Call, view: &View<'_>) -> Result<Response, Refusal> {
    let asked = PageQuery::parse(&call.query, MOST_PER_PAGE)?;
    let conversation = &tenant.classic[index];
    let page = conversation.roster.page(asked.cursor(), asked.size);
    let meta = Meta::of(&asked, &page, &format!("{}?", view.collection(conversation)), "participants");
    let participants =
        page.items.iter().map(|(serial, one)| view.resource(tenant, conversation, *serial, one)).collect();
    Ok(Json(Listing { meta, participants }).into_response())
}

impl Meta {
    /// Twilio's tokens: `PA` and the SID that the page comes after, `PB` and the one it comes before. `Page` is
    /// for the client to count, and finds nothing. `url` ends where the query goes on.
    pub(super) fn of<P>(asked: &PageQuery, page: &Page<'_, P>, url: &str, key: &'static str) -> Meta {
        let link = |number: u64, token: Option<String>| {
            let token = token.map(|token| format!("&PageToken={token}")).unwrap_or_default();
            format!("{url}PageSize={}&Page={number}{token}", asked.size)
        };
        let neighbour = |there: bool, number: Option<u64>, prefix: &str, end: Option<&(u64, &P)>| {
            let (number, (serial, _)) = (number.filter(|_| there)?, end?);
            Some(link(number, Some(format!("{prefix}{}", sid(*serial)))))
        };
        let (first, last) = (page.items.first(), page.items.last());
        Meta {
            page: asked.page,
            page_size: asked.size,
            first_page_url: link(0, None),
            previous_page_url: neighbour(page.more_before, asked.page.checked_sub(1), "PB", first),
            url: link(asked.page, asked.token.as_ref().map(|(text, _)| text.clone())),
            next_page_url: neighbour(page.more_after, asked.page.checked_add(1), "PA", last),
            key,
        }
    }
}

pub(super) struct PageQuery {
    pub(super) size: usize,
    page: u64,
    token: Option<(String, Cursor)>,
}

impl PageQuery {
    /// A size above `most` is read as `most`.
    pub(super) fn parse(query: &str, most: usize) -> Result<PageQuery, Refusal> {
        let mut asked = PageQuery { size: 50, page: 0, token: None };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let bad = || Refusal::BadParameter(format!("{name} {value:?} is not valid"));
            match name.as_ref() {
                "PageSize" => {
                    let size = value.parse().ok().filter(|size| *size >= 1).ok_or_else(bad)?;
                    asked.size = most.min(size);
                }
                "Page" => asked.page = value.parse().map_err(|_| bad())?,
                "PageToken" => asked.token = Some((value.to_string(), cursor(&value).ok_or_else(bad)?)),
                _ => {}
            }
        }
        Ok(asked)
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.token.as_ref().map_or(Cursor::Start, |(_, cursor)| *cursor)
    }
}

fn cursor(token: &str) -> Option<Cursor> {
    match token.split_at_checked(2)? {
        ("PA", sid) => serial_of(sid).map(Cursor::After),
        ("PB", sid) => serial_of(sid).map(Cursor::Before),
        _ => None,
    }
}
