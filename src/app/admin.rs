//! The admin listener: is the process alive, is it ready for calls, and what has it counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::telemetry::{LogFilter, Metrics};

/// Whether the gateway wants calls; it does not depend on Twilio, whose outage no restart would mend.
#[derive(Clone, Default)]
pub(super) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(super) fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Relaxed);
    }
}

pub(super) fn routes(readiness: Readiness, metrics: Metrics, log_filter: Option<LogFilter>) -> Router {
    let routes = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(exposition).with_state(metrics));
    match log_filter {
        Some(filter) => routes.route("/log-filter", put(change_log).with_state(filter)),
        None => routes,
    }
}

pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    end: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, routes).with_graceful_shutdown(end.cancelled_owned()).await
}

/// `curl -X PUT -d debug …/log-filter`, until the process ends or the next change.
async fn change_log(State(filter): State<LogFilter>, text: String) -> (StatusCode, String) {
    match filter.set(text.trim()) {
        Ok(()) => {
            info!(filter = text.trim(), "the log's filter was changed");
            (StatusCode::OK, format!("{}\n", text.trim()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("the filter {error}\n")),
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    if readiness.0.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn exposition(State(metrics): State<Metrics>) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response(),
        Err(error) => {
            warn!("{error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
