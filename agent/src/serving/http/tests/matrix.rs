//! Each datatype, in JSON and binary, both ways, plain and compressed.

use super::*;
use flate2::{Compression, read, write::GzEncoder, write::ZlibEncoder};
use serde_json::json;
use std::io::{Read, Write};

/// JSON values and bytes of a `[2, 2]` tensor; 16-bit floats have no JSON.
fn samples() -> Vec<(Datatype, Option<Value>, Vec<u8>)> {
    fn le<const N: usize>(values: [[u8; N]; 4]) -> Vec<u8> {
        values.concat()
    }
    vec![
        (Datatype::Bool, Some(json!([true, false, false, true])), vec![1, 0, 0, 1]),
        (Datatype::Uint8, Some(json!([0, 1, 200, 255])), vec![0, 1, 200, 255]),
        (Datatype::Uint16, Some(json!([0, 1, 2, 65535])), le([0u16, 1, 2, 65535].map(u16::to_le_bytes))),
        (Datatype::Uint32, Some(json!([0, 1, 2, u32::MAX])), le([0, 1, 2, u32::MAX].map(u32::to_le_bytes))),
        (Datatype::Uint64, Some(json!([0, 1, 2, u64::MAX])), le([0, 1, 2, u64::MAX].map(u64::to_le_bytes))),
        (Datatype::Int8, Some(json!([-128, -1, 0, 127])), vec![128, 255, 0, 127]),
        (Datatype::Int16, Some(json!([-32768, -1, 0, 1])), le([-32768i16, -1, 0, 1].map(i16::to_le_bytes))),
        (Datatype::Int32, Some(json!([i32::MIN, -1, 0, 1])), le([i32::MIN, -1, 0, 1].map(i32::to_le_bytes))),
        (
            Datatype::Int64,
            Some(json!([i64::MIN, -1, 0, i64::MAX])),
            le([i64::MIN, -1, 0, i64::MAX].map(i64::to_le_bytes)),
        ),
        (Datatype::Fp16, None, vec![0, 60, 0, 64, 0, 124, 0, 126]),
        (Datatype::Bf16, None, vec![128, 63, 0, 64, 128, 127, 192, 127]),
        (
            Datatype::Fp32,
            Some(json!([0.5, -1.0e-8, 3.4e38, 0.1f32])),
            le([0.5f32, -1.0e-8, 3.4e38, 0.1].map(f32::to_le_bytes)),
        ),
        (
            Datatype::Fp64,
            Some(json!([0.5, -1e-300, 1e300, 0.1])),
            le([0.5f64, -1e-300, 1e300, 0.1].map(f64::to_le_bytes)),
        ),
        (
            Datatype::Bytes,
            Some(json!(["", "a\n\"", "ü✓", "zz"])),
            b"\0\0\0\0\x03\0\0\0a\n\"\x05\0\0\0\xc3\xbc\xe2\x9c\x93\x02\0\0\0zz".to_vec(),
        ),
    ]
}

fn pack(coding: &str, body: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
            writer.write_all(body).unwrap();
            writer.finish().unwrap()
        }
        "deflate" => {
            let mut writer = ZlibEncoder::new(Vec::new(), Compression::fast());
            writer.write_all(body).unwrap();
            writer.finish().unwrap()
        }
        _ => body.to_vec(),
    }
}

fn unpack(answer: &mut Answered) {
    let mut out = Vec::new();
    match answer.header("content-encoding") {
        Some("gzip") => read::GzDecoder::new(&answer.body[..]).read_to_end(&mut out).map(drop).unwrap(),
        Some("deflate") => read::ZlibDecoder::new(&answer.body[..]).read_to_end(&mut out).map(drop).unwrap(),
        _ => return,
    }
    answer.body = out;
}

#[tokio::test]
async fn every_datatype_survives_json_and_binary_both_ways_under_every_coding() {
    let server = Server::start(samples().iter().map(|(datatype, ..)| echo_bundle(*datatype)).collect()).await;
    let mut client = server.connect().await;
    let mut seen = 0;
    for (datatype, values, bytes) in samples() {
        for (json_in, json_out) in [(false, false), (false, true), (true, false), (true, true)] {
            if values.is_none() && (json_in || json_out) {
                continue;
            }
            for coding in ["identity", "gzip", "deflate"] {
                let mut input = json!({"name": "x", "datatype": datatype.as_str(), "shape": [2, 2]});
                let mut data = &bytes[..];
                if json_in {
                    input["data"] = values.clone().unwrap();
                    data = &[];
                } else {
                    input["parameters"] = json!({"binary_data_size": bytes.len()});
                }
                let request = json!({
                    "id": "ümlaut",
                    "inputs": [input],
                    "outputs": [{"name": "y", "parameters": {"binary_data": !json_out}}],
                })
                .to_string();
                let mut headers = format!("accept-encoding: {coding}\r\ncontent-encoding: {coding}\r\n");
                if !json_in {
                    headers += &format!("Inference-Header-Content-Length: {}\r\n", request.len());
                }
                let body = pack(coding, &[request.as_bytes(), data].concat());
                let path =
                    format!("/v2/models/echo-{}/versions/1/infer?a=b", datatype.as_str().to_lowercase());
                let mut answer = client.call("POST", &path, &headers, &body).await;
                let case = format!("{datatype} {json_in} {json_out} {coding}");
                assert_eq!(answer.status, 200, "{case}: {answer:?}");
                assert_eq!(answer.header("content-encoding").unwrap_or("identity"), coding, "{case}");
                unpack(&mut answer);
                let (said, rest) = answer.split();
                assert_eq!((&said["id"], &said["model_version"]), (&json!("ümlaut"), &json!("1")), "{case}");
                assert_eq!(said["outputs"][0]["shape"], json!([2, 2]), "{case}");
                assert_eq!(said["outputs"][0]["datatype"], datatype.as_str(), "{case}");
                if json_out {
                    // Numbers are compared as this type reads them: 0.1 in FP32 is 0.1 again.
                    let again = json_infer("x", datatype, &[2, 2], &said["outputs"][0]["data"]);
                    let text: Value = serde_json::from_str(&again).unwrap();
                    let raw = text["inputs"][0]["data"].to_string();
                    let back = crate::serving::oip::json::parse_data(
                        "x",
                        datatype,
                        &[2, 2],
                        &raw,
                        &mut crate::serving::oip::NoMemory,
                    )
                    .unwrap();
                    assert_eq!(back, bytes, "{case}");
                    assert!(rest.is_empty(), "{case}");
                } else {
                    assert_eq!(rest, bytes, "{case}");
                    assert_eq!(said["outputs"][0]["parameters"]["binary_data_size"], bytes.len(), "{case}");
                }
                seen += 1;
            }
        }
    }
    assert_eq!(seen, (12 * 4 + 2) * 3);
}

#[tokio::test]
async fn defaults_are_those_of_the_protocol() {
    let two = bundle(
        manifest(
            "two",
            3,
            &[spec("x", Datatype::Fp32, &[-1, 2]), spec("z", Datatype::Uint8, &[2])],
            &[spec("x", Datatype::Fp32, &[-1, 2]), spec("z", Datatype::Uint8, &[2])],
        ),
        Arc::new(Function(|inputs: &[Tensor]| Ok(inputs.to_vec()))),
    );
    let server = Server::start(vec![two, echo_bundle(Datatype::Fp32), echo_bundle(Datatype::Bytes)]).await;
    let infer = "/v2/models/two/infer";
    // Nested data, fields in an odd order, unknown fields ignored; no outputs asked: all, in JSON.
    let body = r#"{"new":[{}],"inputs":[{"data":[[1,2],[3,4]],"shape":[2,2],"datatype":"FP32","name":"x"},
        {"name":"z","shape":[2],"datatype":"UINT8","data":[7,8]}]}"#;
    let said = server.post(infer, body).await.json();
    assert_eq!(said["outputs"][0]["data"], json!([1.0, 2.0, 3.0, 4.0]));
    assert_eq!(said["outputs"][1]["data"], json!([7, 8]));
    assert!(said.get("id").is_none());
    assert_eq!(said["parameters"]["bundle"], "two@3");
    assert_eq!(said["parameters"]["attempt"], "r1/3");
    assert!(said["parameters"].get("prediction_id").is_none(), "the model predicts no class");
    // Binary for one input, JSON for the other; all outputs binary but one.
    let json = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [
            {"name": "z", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
        ],
        "outputs": [{"name": "z", "parameters": {"binary_data": false}}, {"name": "x"}],
    })
    .to_string();
    let headers = format!("inference-header-content-length: {}\r\n", json.len());
    let answer = server.call("POST", infer, &headers, &[json.as_bytes(), &[9, 9]].concat()).await;
    let (said, rest) = answer.split();
    assert_eq!(said["outputs"][0]["data"], json!([9, 9]));
    assert_eq!(rest, &raw(&[1.0, 2.0])[..]);
    // A body without JSON: batch of one, and the answer is binary.
    let length = "inference-header-content-length: 0\r\n";
    let answer = server.call("POST", "/v2/models/echo-fp32/infer", length, &raw(&[5.0, 6.0])).await;
    assert_eq!(answer.split().1, &raw(&[5.0, 6.0])[..]);
    let answer = server.call("POST", infer, length, &raw(&[5.0, 6.0])).await;
    assert!(answer.status == 400 && answer.error().contains("one input"), "{answer:?}");
    // Nothing in a batch of nothing.
    let empty = json_infer("x", Datatype::Fp32, &[0, 2], &json!([]));
    assert_eq!(
        server.post("/v2/models/echo-fp32/infer", &empty).await.json()["outputs"][0]["data"],
        json!([])
    );
}

#[tokio::test]
async fn a_raw_body_of_bytes_is_one_element() {
    let image = bundle(
        manifest("image", 1, &[spec("x", Datatype::Bytes, &[-1])], &[spec("y", Datatype::Bytes, &[-1])]),
        echo(),
    );
    let signal = bundle(
        manifest(
            "signal",
            1,
            &[spec("x", Datatype::Int16, &[-1, 2])],
            &[spec("y", Datatype::Int16, &[-1, 2])],
        ),
        echo(),
    );
    let server = Server::start(vec![image, signal]).await;
    let length = "inference-header-content-length: 0\r\n";
    let answer = server.call("POST", "/v2/models/image/infer", length, b"JPEG").await;
    assert_eq!(answer.split().1, b"\x04\0\0\0JPEG");
    let answer = server.call("POST", "/v2/models/signal/infer", length, &[1, 0, 2, 0]).await;
    assert_eq!(answer.split().0["outputs"][0]["shape"], json!([1, 2]));
}

#[tokio::test]
async fn classification_gives_the_best_with_labels() {
    let server = Server::start(vec![classifier(1)]).await;
    let mut body: Value = serde_json::from_str(&json_infer(
        "image",
        Datatype::Fp32,
        &[2, 4],
        &json!([0.1, 0.7, 0.2, 0.0, 3, 2, 1, 4]),
    ))
    .unwrap();
    let mut classify = async |k: Value, binary: bool| {
        body["outputs"] =
            json!([{"name": "scores", "parameters": {"classification": k, "binary_data": binary}}]);
        server.post("/v2/models/digits/infer", &body.to_string()).await
    };
    let said = classify(json!(2), false).await.json();
    let wanted = json!(["0.700000:1:one", "0.200000:2:two", "4.000000:3:three", "3.000000:0:zero"]);
    assert_eq!(said["outputs"][0]["data"], wanted);
    assert_eq!(said["outputs"][0]["shape"], json!([2, 2]));
    assert_eq!(said["outputs"][0]["datatype"], "BYTES");
    assert_eq!(classify(json!(99), true).await.split().0["outputs"][0]["shape"], json!([2, 4]));
    assert_eq!(classify(json!("x"), true).await.status, 400);
    assert_eq!(said["parameters"]["prediction_count"], 2);
}

#[tokio::test]
async fn descriptions_and_statistics_tell_what_is_served() {
    let server = Server::start(vec![classifier(2), echo_bundle(Datatype::Bytes)]).await;
    let said = server.get("/v2").await.json();
    assert!(said["extensions"].as_array().unwrap().contains(&json!("statistics")), "{said}");
    let said = server.get("/v2/models/digits/versions/2").await.json();
    assert_eq!(said["versions"], json!(["2"]));
    assert_eq!(said["inputs"], json!([{"name": "image", "datatype": "FP32", "shape": [-1, 4]}]));
    let config = server.get("/v2/models/digits/config").await.json();
    assert_eq!((&config["max_batch_size"], &config["input"][0]["dims"]), (&json!(8), &json!([4])));
    let config = server.get("/v2/models/echo-bytes/config").await.json();
    assert_eq!(config["input"][0]["data_type"], "TYPE_STRING");
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/healthz", "/readyz"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/v2/logging").await.json()["log_error"], true);
    assert_eq!(server.post("/v2/logging", "").await.status, 200);
    assert_eq!(server.get("/v2/models/digits/trace/setting").await.json()["trace_level"], json!(["OFF"]));
    let body = json_infer("image", Datatype::Fp32, &[3, 4], &json!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    for _ in 0..2 {
        assert_eq!(server.post("/v2/models/digits/infer", &body).await.status, 200);
    }
    assert_eq!(server.post("/v2/models/digits/infer", "{}").await.status, 400);
    let stats = &server.get("/v2/models/digits/stats").await.json()["model_stats"][0];
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(6), &json!(2)));
    for (field, count) in [("success", 2), ("fail", 1), ("queue", 2), ("compute_infer", 2), ("cache_hit", 0)]
    {
        assert_eq!(stats["inference_stats"][field]["count"], count, "{field}");
    }
    assert_eq!(stats["batch_stats"][0]["batch_size"], 3);
    assert_eq!(server.get("/v2/models/stats").await.json()["model_stats"].as_array().unwrap().len(), 2);
    struct Link;
    impl StatusProvider for Link {
        fn name(&self) -> &'static str {
            "link"
        }
        fn status(&self) -> Value {
            json!({"connected": false})
        }
    }
    server.state.add_status(Arc::new(Link));
    let status = server.get("/v1/status").await.json();
    assert_eq!(status["slots"]["digits"]["bundle"], "digits@2");
    assert_eq!(status["slots"]["digits"]["errors"], json!({"bad-input": 1}));
    assert_eq!(status["link"]["connected"], false);
    let metrics = Client { stream: TcpStream::connect(server.metrics).await.unwrap(), rest: vec![] }
        .call("GET", "/metrics", "", b"")
        .await;
    let text = String::from_utf8(metrics.body).unwrap();
    for line in [
        "edgefleet_requests_total{model=\"digits\",bundle=\"digits@2\",outcome=\"ok\"} 2",
        "edgefleet_requests_total{model=\"digits\",bundle=\"digits@2\",outcome=\"bad-input\"} 1",
        "edgefleet_rows_total{model=\"digits\",bundle=\"digits@2\"} 6",
        "edgefleet_inference_seconds_count{model=\"digits\",bundle=\"digits@2\"} 2",
        "edgefleet_http_responses_total{code=\"400\"} 1",
        "edgefleet_requests_in_flight{model=\"digits\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    server.state.set_ready(false);
    assert_eq!(server.get("/v2/health/ready").await.status, 503);
}
