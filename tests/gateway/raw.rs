//! A client that keeps to no rule but HTTP/2's, and has no timer of its own: tonic's would now and then say CANCELLED
//! before the gateway's answer is there.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::harness::Gateway;

pub struct Raw {
    connection: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
}

#[derive(Debug)]
pub struct RawAnswer {
    pub http_status: u16,
    pub status: Option<Status>,
}

impl RawAnswer {
    pub fn code(&self) -> Code {
        self.status().code()
    }

    pub fn status(&self) -> &Status {
        self.status.as_ref().expect("the answer has a gRPC status")
    }
}

impl Raw {
    pub async fn connect(gateway: &Gateway) -> Self {
        Self::over(TcpStream::connect(gateway.addresses.grpc).await.unwrap()).await
    }

    /// Over this stream and no other.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (connection, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver);
        Self { connection }
    }

    pub fn request(method: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
        Request::post(format!("http://gateway/participant.v1.ParticipantService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(body))
            .unwrap()
    }

    pub fn with_headers(method: &str, headers: &[(&str, &str)], body: &[u8]) -> Request<Full<Bytes>> {
        let mut request = Self::request(method, body.to_vec());
        for (name, value) in headers {
            let name = http::HeaderName::try_from(*name).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        request
    }

    pub async fn call(&self, method: &str, headers: &[(&str, &str)], body: &[u8]) -> RawAnswer {
        self.send(Self::with_headers(method, headers, body)).await
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> RawAnswer {
        self.try_send(request).await.unwrap()
    }

    pub async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<RawAnswer, hyper::Error> {
        let (head, body) = self.connection.clone().send_request(request).await?.into_parts();
        let body = body.collect().await?;
        Ok(RawAnswer {
            http_status: head.status.as_u16(),
            status: Status::from_header_map(&head.headers)
                .or_else(|| body.trailers().and_then(Status::from_header_map)),
        })
    }
}

/// A message as gRPC sends it.
pub fn frame(message: &impl prost::Message) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    message.encode(&mut frame).unwrap();
    frame
}
