//! Bad input to the agent's HTTP port, over the wire.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    fleet::Fleet,
    inference::{Holdout, answers, request},
    place::Place,
};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const GIB: u64 = 1 << 30;

#[tokio::test]
async fn bad_requests_are_refused_by_name_and_the_next_good_one_is_answered() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let base = fleet.agents[0].base.clone();
    let image = Holdout::load()?.images[0].clone();
    let client = Client::new();
    let url = format!("{base}/v2/models/digits/infer");
    let post = |body: Value| client.post(&url).json(&body);
    let input = |name: &str, datatype: &str, shape: Value, data: Value| json!({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
    let pixels = json!(image);
    // The binary extension: the JSON part promises 256 bytes, 200 follow.
    let head = json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64],
        "parameters": {"binary_data_size": 256}}]})
    .to_string();
    let mut truncated = head.clone().into_bytes();
    truncated.extend([0; 200]);
    let binary = client
        .post(&url)
        .header("inference-header-content-length", head.len())
        .header("content-type", "application/octet-stream")
        .body(truncated);
    let cases: Vec<(&str, RequestBuilder, StatusCode, &[&str])> = vec![
        (
            "a wrong name",
            post(input("picture", "FP32", json!([1, 64]), pixels.clone())),
            StatusCode::BAD_REQUEST,
            &["picture", "image"],
        ),
        (
            "a wrong type",
            post(input("image", "INT64", json!([1, 64]), json!(vec![1; 64]))),
            StatusCode::BAD_REQUEST,
            &["INT64", "FP32"],
        ),
        (
            "a wrong shape",
            post(input("image", "FP32", json!([1, 63]), json!(vec![0.5; 63]))),
            StatusCode::BAD_REQUEST,
            &["63"],
        ),
        (
            "a shape that is not what it holds",
            post(input("image", "FP32", json!([2, 64]), pixels.clone())),
            StatusCode::BAD_REQUEST,
            &["image"],
        ),
        (
            "a giant shape",
            post(input("image", "FP32", json!([1_u64 << 60, 64]), pixels.clone())),
            StatusCode::BAD_REQUEST,
            &["image"],
        ),
        ("no inputs", post(json!({})), StatusCode::BAD_REQUEST, &["inputs"]),
        (
            "text that is no JSON",
            client.post(&url).header("content-type", "application/json").body("{\"inputs\": ["),
            StatusCode::BAD_REQUEST,
            &["JSON"],
        ),
        ("a truncated binary tensor", binary, StatusCode::BAD_REQUEST, &["256", "200"]),
        (
            "an unknown model",
            client.post(format!("{base}/v2/models/faces/infer")).json(&request(&image)),
            StatusCode::NOT_FOUND,
            &["faces"],
        ),
        (
            "a web page",
            post(request(&image)).header("origin", "https://evil.example"),
            StatusCode::FORBIDDEN,
            &["web pages", "https://evil.example"],
        ),
        (
            "a web page behind a rebound name",
            post(request(&image)).header("host", "evil.example:8000"),
            StatusCode::FORBIDDEN,
            &["evil.example", "not a name of this device"],
        ),
        (
            "a web page that loads a model",
            client
                .post(format!("{base}/v2/repository/models/digits/unload"))
                .header("origin", "null")
                .json(&json!({})),
            StatusCode::FORBIDDEN,
            &["web pages"],
        ),
        (
            "a program that unloads a model without the token",
            client.post(format!("{base}/v2/repository/models/digits/unload")).json(&json!({})),
            StatusCode::FORBIDDEN,
            &["token"],
        ),
        (
            "feedback that is no JSON",
            client.post(format!("{base}/v1/feedback")).body("nine"),
            StatusCode::BAD_REQUEST,
            &["JSON"],
        ),
    ];
    for (what, request, status, words) in cases {
        let response = request.send().await.with_context(|| what.to_owned())?;
        let found = response.status();
        let text = response.text().await?;
        ensure!(found == status, "{what}: {found}, not {status}: {text}");
        let said: Value = serde_json::from_str(&text).with_context(|| format!("{what}: {text}"))?;
        let error = said["error"].as_str().with_context(|| format!("{what}: no error in {text}"))?;
        for word in words {
            ensure!(error.contains(word), "{what}: `{word}` is not named: {error}");
        }
        answers(&base, "digits@1").await.with_context(|| format!("after {what}"))?;
    }

    // 1 GiB, announced: refused by the announcement, before anything is read.
    let said = raw(&base, &format!("Content-Length: {GIB}\r\n"), &[]).await?;
    ensure!(said.starts_with("HTTP/1.1 413"), "{said}");
    ensure!(said.contains(&GIB.to_string()) && said.contains("16777216 bytes are allowed"), "{said}");
    // 1 GiB, unannounced: refused once the limit is passed.
    let said = raw(&base, "Transfer-Encoding: chunked\r\n", &[b'['; 1 << 20]).await?;
    ensure!(said.starts_with("HTTP/1.1 413"), "{said}");
    answers(&base, "digits@1").await?;
    fleet.stop().await?;
    place.end()
}

/// A POST with `headers`, its body `piece` in chunks up to 1 GiB or until the other side has enough; the
/// answer.
async fn raw(base: &str, headers: &str, piece: &[u8]) -> Result<String> {
    let address = base.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    let (mut reader, mut writer) = socket.split();
    let write = async {
        let mut left = if piece.is_empty() { 0 } else { GIB / piece.len() as u64 };
        while left > 0 {
            let size = format!("{:x}\r\n", piece.len());
            if writer.write_all(size.as_bytes()).await.is_err()
                || writer.write_all(piece).await.is_err()
                || writer.write_all(b"\r\n").await.is_err()
            {
                break; // it has enough
            }
            left -= 1;
        }
        ensure!(piece.is_empty() || left > 0, "the agent took the whole GiB");
        Ok(())
    };
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        // A reset after the answer is no failure of the answer.
        while let Ok(len @ 1..) = reader.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..len]);
        }
    };
    let (written, ()) = tokio::join!(write, read);
    written?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
