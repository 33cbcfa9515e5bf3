//! A real server on loopback and a client that knows only frames and field numbers. The stock client is tried
//! against a whole agent in `tests/`.

mod calls;
mod hostile;

use super::*;
use crate::serving::{
    http::tests::{Server, raw},
    oip::protobuf::{Fields, Writer},
};
use axum::http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// One connection.
pub(in crate::serving) struct Client {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

#[derive(Debug)]
pub(in crate::serving) struct Told {
    pub(in crate::serving) code: u16,
    pub(in crate::serving) text: String,
    pub(in crate::serving) bundle: Option<String>,
    /// Messages, each with its head.
    pub(in crate::serving) body: Vec<u8>,
}

impl Told {
    /// The one message.
    pub(in crate::serving) fn message(&self) -> Fields {
        assert_eq!(self.code, 0, "{}", self.text);
        let mut messages = self.messages();
        assert_eq!(messages.len(), 1);
        Fields::of(messages.remove(0))
    }
    pub(in crate::serving) fn messages(&self) -> Vec<Bytes> {
        let mut rest = &self.body[..];
        let mut messages = vec![];
        while let [0, a, b, c, d, tail @ ..] = rest {
            let (message, tail) = tail.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            messages.push(Bytes::copy_from_slice(message));
            rest = tail;
        }
        assert!(rest.is_empty(), "{rest:?}");
        messages
    }
}

pub(in crate::serving) fn frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

impl Client {
    pub(in crate::serving) async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        Self { sender, authority: server.address.to_string() }
    }

    pub(in crate::serving) fn request(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Request<Full<Bytes>> {
        let uri: Uri = format!("http://{}{SERVICE}{method}", self.authority).parse().unwrap();
        let mut request =
            Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).unwrap()
    }

    pub(in crate::serving) fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Told> + Send + use<> {
        let answer = self.sender.send_request(request);
        async move {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["content-type"], "application/grpc");
            let (head, body) = answer.into_parts();
            let body = body.collect().await.unwrap();
            let status = body.trailers().unwrap_or(&head.headers).clone();
            let text = |name: &str| status.get(name).map(|v| v.to_str().unwrap().to_owned());
            Told {
                code: text("grpc-status").unwrap().parse().unwrap(),
                text: text("grpc-message").unwrap_or_default(),
                bundle: head.headers.get(BUNDLE).map(|v| v.to_str().unwrap().to_owned()),
                body: body.to_bytes().to_vec(),
            }
        }
    }

    pub(in crate::serving) async fn call(&mut self, method: &str, message: &[u8]) -> Told {
        let request = self.request(method, &[], frame(message));
        self.send(request).await
    }
}

/// One input `x`, its data raw.
pub(in crate::serving) fn inference(model: &str, datatype: &str, shape: &[i64], data: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.text(1, model).text(3, "a");
    writer.message(5, |input| {
        input.text(1, "x").text(2, datatype).numbers(3, shape.iter().copied());
    });
    writer.head(7, data.len());
    let mut message = writer.finish();
    message.extend_from_slice(data);
    message
}

/// Texts and numbers of a message by field, the first of each.
pub(in crate::serving) fn first(
    mut fields: Fields,
    wanted: u32,
) -> Option<crate::serving::oip::protobuf::Value> {
    while let Some((field, value)) = fields.next().unwrap() {
        if field == wanted {
            return Some(value);
        }
    }
    None
}

pub(in crate::serving) fn raw_output(told: &Told) -> Bytes {
    first(told.message(), 6).unwrap().bytes().unwrap()
}

pub(in crate::serving) fn two(values: [f32; 2]) -> Vec<u8> {
    inference("echo-fp32", "FP32", &[1, 2], &raw(&values))
}
