//! Every mistake of a client has its status and a text that names it.

use super::*;

const INFER: &str = "/v2/models/echo-fp32/infer";

#[tokio::test]
async fn requests_that_do_not_fit_are_refused_by_name() {
    let all =
        [Datatype::Fp32, Datatype::Uint8, Datatype::Bool, Datatype::Bytes, Datatype::Fp16, Datatype::Int64];
    let server = Server::start(all.map(echo_bundle).into()).await;
    let x = |datatype: &str, shape: &str, data: &str| {
        format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}"#)
    };
    let mut client = server.connect().await;
    let infer = |kind: &str| format!("/v2/models/echo-{kind}/infer");
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (path, body, status, words) in [
        ("/v2/models/nosuch/infer".into(), x("FP32", "[1,2]", "[1,2]"), 404, "`nosuch`"),
        ("/v2/models/echo-fp32/versions/7/infer".into(), x("FP32", "[1,2]", "[1,2]"), 404, "no version 7"),
        ("/v2/models/echo-fp32/versions/x/infer".into(), x("FP32", "[1,2]", "[1,2]"), 400, "version \"x\""),
        (infer("fp32"), String::new(), 400, "not an inference request in JSON"),
        (infer("fp32"), "{".into(), 400, "EOF"),
        (infer("fp32"), "[]".into(), 400, "JSON"),
        (infer("fp32"), "{}".into(), 400, "`inputs`"),
        (infer("fp32"), "\u{1}".into(), 400, "JSON"),
        (infer("fp32"), r#"{"inputs":[]}"#.into(), 400, "input `x` (FP32 [-1, 2]) is missing"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2]").replace("\"x\"", "\"z\""), 400, "no input `z`; it has `x`"),
        (infer("fp32"), x("INT64", "[1,2]", "[1,2]"), 400, "`x` is FP32, not INT64"),
        (infer("fp32"), x("FP99", "[1,2]", "[1,2]"), 400, "not FP99"),
        (infer("fp32"), x("FP32", "[1,3]", "[1,2,3]"), 400, "shape [1, 3], the model takes [-1, 2]"),
        (infer("fp32"), x("FP32", "[2]", "[1,2]"), 400, "shape [2]"),
        (infer("fp32"), x("FP32", "[-1,2]", "[1,2]"), 400, "shape [-1, 2]"),
        (infer("fp32"), x("FP32", "[9,2]", "[1,2]"), 400, "9 rows, the model takes at most 8"),
        (infer("fp32"), x("FP32", "[9223372036854775807,2]", "[1]"), 400, "at most 8"),
        (infer("fp32"), x("FP32", "[1,2,3,4,5,6,7,8,9,10]", "[1]"), 400, "at most 8 elements"),
        (infer("fp32"), x("FP32", "[1,2]", "[1]"), 400, "needs 2 elements"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2,3]"), 400, "more than the 2 elements"),
        (infer("fp32"), x("FP32", "[2,2]", "[[1,2,3],[4]]"), 400, "nesting"),
        (infer("fp32"), x("FP32", "[2,2]", "[[1,2],3,4]"), 400, "nesting"),
        (infer("fp32"), x("FP32", "[1,2]", "[[[1,2]]]"), 400, "nested deeper"),
        (infer("fp32"), x("FP32", "[1,2]", &deep), 400, "nested deeper"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,NaN]"), 400, "send such tensors as binary data"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,-Infinity]"), 400, "send such tensors as binary data"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,null]"), 400, "`x`: element 1: null is no number"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,\"2\"]"), 400, "element 1: \"2\" is no number"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,{}]"), 400, "element 1"),
        (infer("fp32"), x("FP32", "[1,2]", "{}"), 400, "element 0"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,1e39]"), 400, "element 1: 1e39 does not fit FP32"),
        (infer("uint8"), x("UINT8", "[1,2]", "[1,300]"), 400, "`x`: element 1: 300 does not fit UINT8"),
        (infer("uint8"), x("UINT8", "[1,2]", "[-1,3]"), 400, "element 0: -1 does not fit UINT8"),
        (infer("uint8"), x("UINT8", "[1,2]", "[1.5,3]"), 400, "element 0: 1.5 is no integer"),
        (infer("int64"), x("INT64", "[1,2]", "[1,9223372036854775808]"), 400, "does not fit INT64"),
        (infer("bool"), x("BOOL", "[1,2]", "[true,2]"), 400, "element 1: 2 is neither true nor false"),
        (infer("bytes"), x("BYTES", "[1,2]", "[\"a\",2]"), 400, "element 1: 2 is no string"),
        (infer("fp16"), x("FP16", "[1,2]", "[1,2]"), 400, "send it as binary data"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2]").replace("]}]", "]}],\"parameters\":{\"a\":{}}"), 400, "string, a number"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2]").replace("]}]", "]}],\"parameters\":{\"binary_data_output\":1}"), 400, "true or false"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2]").replace("]}]", "]}],\"parameters\":{\"sequence_id\":1}"), 501, "sequence_id"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2]").replace("]}]", "]}],\"outputs\":[{\"name\":\"q\"}]"), 400, "no output `q`; it has `y`"),
        (infer("fp32"), x("FP32", "[1,2]", "[1,2]").replace("]}]", "]}],\"outputs\":[{\"name\":\"y\"},{\"name\":\"y\"}]"), 400, "twice"),
        (
            infer("fp32"),
            r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"shared_memory_region":"r","shared_memory_byte_size":8}}]}"#.into(),
            400,
            "shared memory region `r` is not registered",
        ),
        (infer("fp32"), r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2]}]}"#.into(), 400, "neither"),
        (
            infer("fp32"),
            r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}"#.into(),
            400,
            "Inference-Header-Content-Length is missing",
        ),
        (infer("fp32"), format!(r#"{{"inputs":[{}]}}"#, vec!["{}"; 100_000].join(",")), 400, "missing field"),
        (
            infer("fp32"),
            format!(r#"{{"inputs":[{}]}}"#, vec![r#"{"name":"x","datatype":"FP32","shape":[]}"#; 1_000].join(",")),
            400,
            "at most 64",
        ),
    ] {
        let answer = client.call("POST", &path, "", body.as_bytes()).await;
        let shown: String = body.chars().take(200).collect();
        assert_eq!(answer.status, status, "{path} {shown}: {answer:?}");
        assert!(answer.error().contains(words), "{path} {shown}: {}", answer.error());
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    server.monitor.flush();
}

#[tokio::test]
async fn binary_data_must_be_exactly_what_it_claims() {
    let server =
        Server::start([Datatype::Fp32, Datatype::Bytes, Datatype::Bool].map(echo_bundle).into()).await;
    let mut client = server.connect().await;
    let x = |datatype: &str, size: usize| {
        format!(
            r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[1,2],"parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    let sent = |json: String, data: &[u8]| (json.len().to_string(), [json.as_bytes(), data].concat());
    for (kind, (length, body), words) in [
        ("fp32", sent(x("FP32", 8), &[0; 7]), "announces 8 bytes of binary data, only 7 are left"),
        ("fp32", sent(x("FP32", 7), &[0; 7]), "needs 8 bytes, but 7 came"),
        ("fp32", sent(x("FP32", 8), &[0; 9]), "1 bytes of binary data belong to no input"),
        ("fp32", ("999".into(), x("FP32", 8).into_bytes()), "is said to have 999 bytes"),
        ("fp32", ("-1".into(), x("FP32", 8).into_bytes()), "not a count of bytes"),
        ("fp32", ("+8".into(), x("FP32", 8).into_bytes()), "not a count of bytes"),
        ("fp32", ("99999999999999999999999".into(), vec![]), "not a count of bytes"),
        ("fp32", ("0".into(), vec![0; 9]), "needs 8 bytes, but 9 came"),
        ("bytes", sent(x("BYTES", 9), b"\x01\0\0\0a\xff\0\0\0"), "element 1 is cut off"),
        ("bool", sent(x("BOOL", 2), &[1, 2]), "element 1: 2 is neither 0 nor 1"),
    ] {
        let headers = format!("inference-header-content-length: {length}\r\n");
        let answer = client.call("POST", &format!("/v2/models/echo-{kind}/infer"), &headers, &body).await;
        assert_eq!(answer.status, 400, "{words}: {answer:?}");
        assert!(answer.error().contains(words), "{words}: {}", answer.error());
    }
}

#[tokio::test]
async fn routes_verbs_and_codings_have_their_statuses() {
    let config = ServingConfig { local_token: Some("s3cret".into()), ..Default::default() };
    let bundles = vec![echo_bundle(Datatype::Fp32)];
    let server = Server::with(config, pool(1, 1), bundles).await;
    let token = "authorization: Bearer s3cret\r\n";
    let load = "/v2/repository/models/echo-fp32/load";
    let unload = "/v2/repository/models/echo-fp32/unload";
    let infer = json_infer("x", Datatype::Fp32, &[1, 2], &serde_json::json!([1, 2]));
    for (method, path, headers, body, status, words) in [
        ("GET", "/nothing", "", "", 404, "/nothing"),
        ("GET", "/v2/nothing", "", "", 404, "/v2/nothing"),
        ("GET", "/v2/models/%ff/ready", "", "", 400, "path"),
        ("DELETE", "/v2", "", "", 405, "DELETE is not allowed"),
        ("GET", INFER, "", "", 405, "GET is not allowed"),
        ("POST", INFER, "content-encoding: br\r\n", &infer, 415, "`br`"),
        ("POST", INFER, "content-encoding: gzip\r\n", &infer, 400, "not Gzip"),
        ("POST", INFER, "content-encoding: deflate\r\n", &infer, 400, "not Deflate"),
        ("POST", INFER, "origin: http://evil.example\r\n", &infer, 403, "web pages"),
        ("GET", "/v2/models/nosuch", "", "", 404, "`nosuch`"),
        ("GET", "/v2/models/nosuch/ready", "", "", 404, "served: `echo-fp32`"),
        ("GET", "/v2/models/echo-fp32/versions/2/config", "", "", 404, "version 1 is active"),
        ("POST", load, "", "", 401, "Bearer TOKEN"),
        ("POST", load, "authorization: Bearer wrong\r\n", "", 403, "wrong"),
        ("POST", load, "authorization: Bearer s3creT\r\n", "", 403, "wrong"),
        ("POST", load, token, r#"{"parameters":{"config":"{}"}}"#, 400, "signed bundle"),
        ("POST", load, token, r#"{"parameters":{"file:1/model.onnx":"AA=="}}"#, 400, "`file:1/model.onnx`"),
        ("POST", "/v2/repository/models/other/load", token, "{}", 404, "controller"),
        ("POST", load, token, "nonsense", 400, "JSON"),
        ("POST", "/v2/logging", "", r#"{"log_verbose_level":1}"#, 501, "`log_verbose_level`"),
        ("POST", "/v2/trace/setting", "", r#"{"trace_level":["TIMESTAMPS"]}"#, 501, "`trace_level`"),
        ("GET", "/v2/systemsharedmemory/region/r/status", "", "", 404, "not registered"),
        ("POST", "/v2/systemsharedmemory/region/r/register", "", "{}", 400, "key"),
        ("POST", "/v2/cudasharedmemory/unregister", "", "", 501, "send tensors"),
        ("POST", "/v1/feedback", "", "{}", 400, "prediction_id"),
        ("POST", "/v1/feedback", "", r#"{"prediction_id":"x","label":1}"#, 400, "label 0"),
        ("POST", "/v1/feedback", "", r#"{"labels":[],"source":"A B"}"#, 400, "label source"),
        ("POST", "/v1/feedback", "", r#"{"labels":[],"extra":1}"#, 400, "extra"),
    ] {
        let answer = server.call(method, path, headers, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{method} {path} {headers}: {answer:?}");
        assert!(answer.error().contains(words), "{method} {path}: {}", answer.error());
    }
    for (headers, status) in [(token, 200), ("", 401)] {
        assert_eq!(server.call("POST", unload, headers, b"{}").await.status, status);
    }
    assert_eq!(server.call("POST", INFER, "", infer.as_bytes()).await.status, 503, "unloaded");
    let index = server.post("/v2/repository/index", "").await.json();
    assert_eq!(index[0]["state"], "UNAVAILABLE");
    assert_eq!(server.post("/v2/repository/index", r#"{"ready":true}"#).await.json(), serde_json::json!([]));
    assert_eq!(server.call("POST", load, token, b"").await.status, 200);
    assert_eq!(server.call("POST", INFER, "", infer.as_bytes()).await.status, 200);
    let closed = Server::start(vec![]).await;
    assert_eq!(closed.call("POST", load, token, b"").await.status, 403, "no token is configured");
}

#[tokio::test]
async fn engine_failures_are_told_apart_from_the_clients_mistakes() {
    let fails = |error: fn() -> RunError| Arc::new(Function(move |_: &[Tensor]| Err(error())));
    let of = |name: &str, model| {
        let (x, y) = (spec("x", Datatype::Fp32, &[-1, 2]), spec("y", Datatype::Fp32, &[-1, 2]));
        bundle(manifest(name, 1, &[x], &[y]), model)
    };
    let server = Server::start(vec![
        of("engine", fails(|| RunError::Engine("node `conv1` failed".into()))),
        of("input", fails(|| RunError::BadInput("row 0 is too hot".into()))),
        of("silent", Arc::new(Function(|_: &[Tensor]| Ok(vec![])))),
        of(
            "nan",
            Arc::new(Function(|_: &[Tensor]| {
                Tensor::new("y", Datatype::Fp32, vec![1, 2], raw(&[1.0, f32::NAN]))
                    .map(|t| vec![t])
                    .map_err(|e| RunError::Engine(e.to_string()))
            })),
        ),
    ])
    .await;
    let body = json_infer("x", Datatype::Fp32, &[1, 2], &serde_json::json!([1, 2]));
    for (model, status, words) in [
        ("engine", 500, "conv1"),
        ("input", 400, "too hot"),
        ("silent", 500, "did not return output `y`"),
        ("nan", 400, "`y` element 1 is NaN or infinite"),
    ] {
        let answer = server.post(&format!("/v2/models/{model}/infer"), &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.error().contains(words), "{answer:?}");
        assert_eq!(answer.header("x-edgefleet-bundle"), Some(format!("{model}@1").as_str()));
    }
    server.monitor.flush();
    let records = server.kept.0.lock();
    let bad: BTreeMap<_, _> = records
        .iter()
        .filter_map(|r| if let RecordBody::Window(w) = r { Some(w) } else { None })
        .map(|w| (w.slot.to_string(), (w.counts.errors.clone(), w.first_bad_ms.is_some())))
        .collect();
    assert_eq!(bad["engine"], ([("engine".to_owned(), 1)].into(), true));
    assert_eq!(bad["input"], ([("bad-input".to_owned(), 1)].into(), false));
    assert_eq!(bad["silent"], ([("engine".to_owned(), 1)].into(), true));
}
