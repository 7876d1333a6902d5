//! The three operations of Kinesis that a reader needs, and what their failures ask for. Nothing is repeated here.

use std::error::Error as StdError;
use std::iter::successors;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kinesis::Client as Kinesis;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::get_shard_iterator::builders::GetShardIteratorFluentBuilder;
use aws_sdk_kinesis::types::{self, ShardIteratorType};

use super::Stream;
use super::shards::{Listed, Place};

/// So many records are taken at once; AWS gives no more than 10 MB of them.
const BATCH: i32 = 10_000;
/// An answer may be 10 MB long.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// So much of AWS's own words goes into the log.
const LONGEST_TEXT: usize = 300;

/// Why Kinesis could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Too much was asked, by all who read the shard together.
    #[error(
        "it throttles: all who read a shard together may ask five times a second; raise kinesis.poll_interval, or configure Redis, so that one replica reads for all"
    )]
    Throttled,
    /// The iterator has to be made anew: AWS keeps one for five minutes.
    #[error("the iterator has expired")]
    IteratorExpired,
    /// The stream, or a shard of it, is not there.
    #[error(
        "there is no such stream, or its shard is gone: check kinesis.stream, its region and its account ({0})"
    )]
    NotFound(String),
    /// It takes no such request, such as one for a place that it does not have.
    #[error("it refuses the request: {0}")]
    Invalid(String),
    /// There is nothing to sign with.
    #[error(
        "there are no AWS credentials, or no region: give the process a role, or set AWS's own variables ({0})"
    )]
    NoCredentials(String),
    /// Whoever the credentials are, they may not.
    #[error(
        "AWS refuses the credentials, or they lack a permission of docs/kinesis.md: check the role and its policy ({0})"
    )]
    Denied(String),
    /// Anything that passes by itself.
    #[error("it cannot be reached, or has failed: {0}")]
    Unavailable(String),
}

/// A record of a shard.
pub(super) struct Record {
    pub(super) sequence_number: String,
    pub(super) data: Vec<u8>,
}

/// What a shard has after an iterator.
pub(super) struct Page {
    pub(super) records: Vec<Record>,
    /// Where it goes on; none: the shard is closed and was read to its end.
    pub(super) next: Option<String>,
    /// How far the page is behind the shard's tip.
    pub(super) behind: Duration,
}

/// A client for one stream.
pub(super) struct Client {
    kinesis: Kinesis,
    stream: Stream,
}

impl Client {
    /// By AWS's default chain: its variables, its files, web identity, and the metadata of the machine. It asks them when it
    /// is made, but fails later.
    pub(super) async fn new(stream: Stream) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        if let Some(region) = stream.region() {
            loader = loader.region(Region::new(region.to_owned()));
        }
        Self { kinesis: Kinesis::from_conf(config(&loader.load().await)), stream }
    }

    /// All shards that AWS still has, closed ones among them.
    pub(super) async fn shards(&self) -> Result<Vec<Listed>, Error> {
        let (mut shards, mut token) = (Vec::new(), None);
        loop {
            let request = self.kinesis.list_shards();
            let request = match token.take() {
                // A further page is named by the token alone.
                Some(token) => request.next_token(token),
                None => request.set_stream_name(self.stream.name()).set_stream_arn(self.stream.arn()),
            };
            let page = request.send().await?;
            shards.extend(page.shards.unwrap_or_default().into_iter().map(Listed::from));
            match page.next_token {
                Some(next) => token = Some(next),
                None => return Ok(shards),
            }
        }
    }

    /// An iterator that begins at the place.
    pub(super) async fn iterator(&self, shard: &str, place: &Place) -> Result<String, Error> {
        let request = self.kinesis.get_shard_iterator().shard_id(shard);
        let request = request.set_stream_name(self.stream.name()).set_stream_arn(self.stream.arn());
        let answer = begin_at(request, place).send().await?;
        answer.shard_iterator.ok_or_else(|| Error::Unavailable("an answer without an iterator".into()))
    }

    /// What comes after the iterator.
    pub(super) async fn records(&self, iterator: &str) -> Result<Page, Error> {
        let request = self.kinesis.get_records().shard_iterator(iterator).limit(BATCH);
        let page = request.set_stream_arn(self.stream.arn()).send().await?;
        let behind = page.millis_behind_latest.and_then(|millis| u64::try_from(millis).ok());
        Ok(Page {
            records: page.records.into_iter().map(Record::from).collect(),
            next: page.next_shard_iterator,
            behind: Duration::from_millis(behind.unwrap_or_default()),
        })
    }
}

/// The SDK repeats nothing: the reader does, and two that do would multiply.
fn config(shared: &SdkConfig) -> aws_sdk_kinesis::Config {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_timeout(TIMEOUT).build();
    aws_sdk_kinesis::config::Builder::from(shared)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .build()
}

fn begin_at(request: GetShardIteratorFluentBuilder, place: &Place) -> GetShardIteratorFluentBuilder {
    match place {
        Place::Now => request.shard_iterator_type(ShardIteratorType::Latest),
        Place::Since(moment) => {
            request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(SystemTime::into(*moment))
        }
        Place::After(number) => request
            .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
            .starting_sequence_number(number),
        Place::Oldest | Place::Ended => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
    }
}

impl From<types::Shard> for Listed {
    fn from(shard: types::Shard) -> Self {
        let is_open = shard.sequence_number_range.is_none_or(|range| range.ending_sequence_number.is_none());
        let parents = [shard.parent_shard_id, shard.adjacent_parent_shard_id];
        Self { id: shard.shard_id, parents: parents.into_iter().flatten().collect(), is_open }
    }
}

impl From<types::Record> for Record {
    fn from(record: types::Record) -> Self {
        Self { sequence_number: record.sequence_number, data: record.data.into_inner() }
    }
}

impl<E, R> From<SdkError<E, R>> for Error
where
    SdkError<E, R>: StdError,
    E: ProvideErrorMetadata,
{
    fn from(error: SdkError<E, R>) -> Self {
        match &error {
            SdkError::ServiceError(answer) => of_service(answer.err()),
            SdkError::DispatchFailure(failure) if !failure.is_io() && !failure.is_timeout() => {
                Self::NoCredentials(shortened(&chain(&error)))
            }
            // A request without a region cannot even be made.
            SdkError::ConstructionFailure(_) => Self::NoCredentials(shortened(&chain(&error))),
            _ => Self::Unavailable(shortened(&chain(&error))),
        }
    }
}

/// By AWS's code: every operation has an enum of its own, and all have the codes in common.
fn of_service(error: &impl ProvideErrorMetadata) -> Error {
    let code = error.code().unwrap_or_default();
    let text = shortened(&format!("{code}: {}", error.message().unwrap_or("no message")));
    match code {
        "ProvisionedThroughputExceededException"
        | "LimitExceededException"
        | "KMSThrottlingException"
        | "ThrottlingException"
        | "Throttling" => Error::Throttled,
        "ExpiredIteratorException" => Error::IteratorExpired,
        "ResourceNotFoundException" => Error::NotFound(text),
        "InvalidArgumentException" | "ValidationException" => Error::Invalid(text),
        "AccessDeniedException"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "KMSAccessDeniedException"
        | "KMSDisabledException"
        | "KMSInvalidStateException"
        | "KMSNotFoundException"
        | "KMSOptInRequired"
        | "MissingAuthenticationTokenException"
        | "OptInRequired"
        | "UnrecognizedClientException" => Error::Denied(text),
        _ => Error::Unavailable(text),
    }
}

/// What went wrong and why. Without `Debug`, which AWS's own context adds: it shows the answer's body, and records are PII.
fn chain(error: &dyn StdError) -> String {
    let causes = successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn shortened(text: &impl ToString) -> String {
    text.to_string().chars().take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::config::Credentials;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// What a client is told by a server that answers so, without headers that are not needed.
    async fn error_of(answer: &'static str) -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answering = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = BufReader::new(&mut stream).lines();
            while request.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
            stream.write_all(format!("{head}{answer}").as_bytes()).await.unwrap();
        };
        let shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .endpoint_url(url)
            .credentials_provider(Credentials::new("a", "b", None, None, "a test"));
        let shared = shared.load().await;
        let client =
            Client { kinesis: Kinesis::from_conf(config(&shared)), stream: Stream::Name("events".into()) };
        let (error, ()) = tokio::join!(client.records("iterator"), answering);
        error.map(|_| ()).unwrap_err()
    }

    /// Records are PII.
    #[tokio::test]
    async fn an_answer_that_cannot_be_read_is_told_without_what_it_holds() {
        for answer in [
            r#"{"Records":[{"SequenceNumber":5,"Data":"bWFsbG9yeQ=="}]}"#,
            r#"{"Records":[{"Data":"mallory, no Base64"}]}"#,
            r#"{"Records":["mallory"]}"#,
            r#"{"mallory"#,
        ] {
            let text = error_of(answer).await.to_string();
            assert!(!text.contains("mallory") && !text.contains("bWFsbG9yeQ"), "{text}");
        }
    }
}
