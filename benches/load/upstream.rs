//! A fast v1 of Twilio's, to read from: HTTP/1.1 with keep-alive, and whatever participant is asked for.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use participant_gateway::sandbox;
use tokio::task::JoinSet;

/// Each answer comes so many milliseconds late.
pub(crate) async fn run(delay: u64) {
    let (listener, delay) = (crate::listen().await, Duration::from_millis(delay));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let service = service_fn(move |request| answer(request, delay));
        let mut server = http1::Builder::new();
        let server = server.timer(TokioTimer::new());
        connections.spawn(server.serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>, delay: Duration) -> Result<Response<Full<Bytes>>, Infallible> {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    Ok(participant(request.uri().path()).unwrap_or_else(|| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    }))
}

fn participant(path: &str) -> Option<Response<Full<Bytes>>> {
    let (conversation, participant) =
        path.strip_prefix("/v1/Conversations/")?.split_once("/Participants/")?;
    let mut response = Response::new(Full::from(json(conversation, participant)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}

/// 640 bytes, as in Twilio's documentation.
fn json(conversation: &str, participant: &str) -> String {
    let account = sandbox::ACCOUNT_SID;
    format!(
        r#"{{"account_sid":"{account}","conversation_sid":"{conversation}","sid":"{participant}","identity":null,"attributes":"{{\"role\":\"driver\",\"locale\":\"en\"}}","messaging_binding":{{"type":"sms","address":"+15558675310","proxy_address":"+15017122661","projected_address":null}},"role_sid":"RL00000000000000000000000000000001","date_created":"2026-01-05T09:00:00Z","date_updated":"2026-01-05T09:00:00Z","url":"https://conversations.twilio.com/v1/Conversations/{conversation}/Participants/{participant}","last_read_message_index":7,"last_read_timestamp":"2026-01-05T09:00:00Z"}}"#
    )
}
