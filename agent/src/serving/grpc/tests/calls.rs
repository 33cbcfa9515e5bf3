//! What calls answer.

use super::*;
use crate::serving::http::tests::{classifier, echo_bundle};
use edgefleet_shared::tensor::Datatype;
use std::io::Write;

const ALL: [Datatype; 14] = [
    Datatype::Bool,
    Datatype::Uint8,
    Datatype::Uint16,
    Datatype::Uint32,
    Datatype::Uint64,
    Datatype::Int8,
    Datatype::Int16,
    Datatype::Int32,
    Datatype::Int64,
    Datatype::Fp16,
    Datatype::Bf16,
    Datatype::Fp32,
    Datatype::Fp64,
    Datatype::Bytes,
];

#[tokio::test]
async fn every_datatype_goes_there_and_back() {
    let server = Server::start(ALL.map(echo_bundle).into()).await;
    let mut client = Client::connect(&server).await;
    for datatype in ALL {
        let data = match datatype.size() {
            Some(1) => vec![1, 0],
            Some(size) => (1..=size as u8 * 2).collect(),
            None => b"\x02\0\0\0ab\0\0\0\0".to_vec(),
        };
        let model = format!("echo-{}", datatype.as_str().to_lowercase());
        let told = client.call("ModelInfer", &inference(&model, datatype.as_str(), &[1, 2], &data)).await;
        assert_eq!(raw_output(&told), data, "{datatype}");
        let output = first(told.message(), 5).unwrap().message().unwrap();
        assert_eq!(first(output, 2).unwrap().text().unwrap(), datatype.as_str());
    }
}

#[tokio::test]
async fn an_inference_names_its_bundle_and_is_counted_like_one_over_http() {
    let server = Server::start(vec![classifier(3)]).await;
    let mut client = Client::connect(&server).await;
    let mut writer = Writer::new();
    writer.text(1, "digits").text(2, "3").text(3, "my-id");
    writer.message(5, |input| {
        input.text(1, "image").text(2, "FP32").numbers(3, [1, 4].into_iter());
    });
    writer.message(6, |output| {
        output.text(1, "scores").entry(2, "classification", |choice| {
            choice.choice(2, 2);
        });
    });
    writer.head(7, 16);
    let message = [writer.finish(), raw(&[0.0, 0.5, 0.25, 0.25]).to_vec()].concat();
    let told = client.call("ModelInfer", &message).await;
    assert_eq!(told.bundle.as_deref(), Some("digits@3"));
    assert_eq!(first(told.message(), 2).unwrap().text().unwrap(), "3");
    assert_eq!(first(told.message(), 3).unwrap().text().unwrap(), "my-id");
    let best = raw_output(&told);
    assert!(String::from_utf8_lossy(&best).contains("0.500000:1:one"), "{best:?}");
    let mut ids = 0;
    let mut fields = told.message();
    while let Some((field, value)) = fields.next().unwrap() {
        if field == 4 {
            let entry = value.message().unwrap();
            ids += u32::from(first(entry, 1).unwrap().text().unwrap() == "prediction_id");
        }
    }
    assert_eq!(ids, 1);
    let said = server.get("/v2/models/digits/stats").await.json();
    assert_eq!(said["model_stats"][0]["inference_stats"]["success"]["count"], 1, "{said}");
    // The same numbers over gRPC.
    let mut which = Writer::new();
    which.text(1, "digits");
    let told = client.call("ModelStatistics", &which.finish()).await;
    let stats = first(told.message(), 1).unwrap().message().unwrap();
    assert_eq!(first(stats.clone(), 4).unwrap().number().unwrap(), 1);
    let inner = first(stats, 6).unwrap().message().unwrap();
    for field in 1..=8 {
        assert!(first(inner.clone(), field).is_some(), "field {field} of the statistics is missing");
    }
}

#[tokio::test]
async fn packed_messages_are_unpacked() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let mut client = Client::connect(&server).await;
    let message = two([1.0, -2.0]);
    for coding in ["gzip", "deflate", "identity"] {
        let packed = match coding {
            "gzip" => {
                let mut writer = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
                writer.write_all(&message).unwrap();
                writer.finish().unwrap()
            }
            "deflate" => {
                let mut writer = flate2::write::ZlibEncoder::new(vec![], flate2::Compression::fast());
                writer.write_all(&message).unwrap();
                writer.finish().unwrap()
            }
            _ => message.clone(),
        };
        let mut body = frame(&packed);
        body[0] = u8::from(coding != "identity");
        let request = client.request("ModelInfer", &[("grpc-encoding", coding)], body.clone());
        assert_eq!(raw_output(&client.send(request).await), raw(&[1.0, -2.0]), "{coding}");
        if coding != "identity" {
            let request = client.request("ModelInfer", &[], body);
            assert_eq!(client.send(request).await.code, 3, "packed without saying how");
        }
    }
    let request = client.request("ModelInfer", &[("grpc-encoding", "snappy")], frame(&message));
    assert_eq!(client.send(request).await.code, 12);
}

#[tokio::test]
async fn refusals_have_the_codes_of_grpc_and_the_texts_of_http() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let mut client = Client::connect(&server).await;
    let good = raw(&[1.0, 2.0]);
    for (message, code, text) in [
        (inference("nobody", "FP32", &[1, 2], &good), 5, "`nobody` is not served here; served: `echo-fp32`"),
        (inference("echo-fp32", "FP64", &[1, 2], &good), 3, "input `x` is FP32, not FP64"),
        (inference("echo-fp32", "FP32", &[1, 3], &good), 3, "has shape [1, 3]"),
        (inference("echo-fp32", "FP32", &[9, 2], &[0; 72]), 3, "9 rows, the model takes at most 8"),
        (inference("echo-fp32", "FP32", &[-1, 2], &good), 3, "has shape [-1, 2]"),
        (inference("echo-fp32", "FP32", &[1, 2], &good[..7]), 3, "needs 8 bytes, but 7 came"),
        (b"\xff\xff".to_vec(), 3, "not a protocol buffer"),
    ] {
        let told = client.call("ModelInfer", &message).await;
        assert_eq!(told.code, code, "{told:?}");
        assert!(told.text.contains(text), "{told:?}");
    }
    for (method, code) in [
        ("Nothing", 12),
        ("CudaSharedMemoryRegister", 12),
        ("RepositoryModelLoad", 7),
        ("ServerLive", 0),
        ("ServerReady", 0),
        ("ServerMetadata", 0),
        ("RepositoryIndex", 0),
        ("ModelStatistics", 0),
        ("TraceSetting", 0),
        ("LogSettings", 0),
        ("SystemSharedMemoryStatus", 0),
        ("SystemSharedMemoryUnregister", 0),
        ("SystemSharedMemoryRegister", 3),
        ("ModelConfig", 5),
    ] {
        let told = client.call(method, b"").await;
        assert_eq!(told.code, code, "{method}: {told:?}");
    }
    let request = client.request("ModelInfer", &[("origin", "http://localhost")], frame(&two([0.0; 2])));
    assert_eq!(client.send(request).await.code, 7, "web pages are refused");
}

#[tokio::test]
async fn a_stream_answers_in_order_and_survives_a_bad_request() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let mut client = Client::connect(&server).await;
    let mut body = vec![];
    for n in 0..20u8 {
        body.extend(frame(&match n {
            7 => b"\x0a\x00".to_vec(),
            9 => inference("nobody", "FP32", &[1, 2], &[0; 8]),
            11 => inference("echo-fp32", "FP64", &[1, 2], &[0; 8]),
            n => two([f32::from(n), 0.0]),
        }));
    }
    let request = client.request("ModelStreamInfer", &[], body);
    let told = client.send(request).await;
    assert_eq!(told.code, 0, "{}", told.text);
    let messages = told.messages();
    assert_eq!(messages.len(), 20);
    for (n, message) in messages.into_iter().enumerate() {
        let fields = Fields::of(message);
        let error = first(fields.clone(), 1).map(|text| text.text().unwrap());
        assert_eq!(error.is_some(), [7, 9, 11].contains(&n), "{error:?}");
        let Some(response) = first(fields, 2) else {
            assert_eq!(n, 7, "only a request without an id has none to be told");
            continue;
        };
        let response = response.message().unwrap();
        assert_eq!(first(response.clone(), 3).unwrap().text().unwrap(), "a", "{n}");
        if error.is_none() {
            assert_eq!(first(response, 6).unwrap().bytes().unwrap(), raw(&[n as f32, 0.0]));
        }
    }
}
