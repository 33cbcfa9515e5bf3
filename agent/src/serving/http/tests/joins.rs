//! Labels find their predictions over the wire.

use super::*;
use serde_json::json;

#[tokio::test]
async fn feedback_joins_by_row_name_or_index_and_counts_once() {
    let server = Server::start(vec![classifier(2)]).await;
    let body =
        json_infer("image", Datatype::Fp32, &[3, 4], &json!([0.9, 0, 0, 0, 0, 0.8, 0, 0, 0, 0, 0.7, 0]));
    let said = server.post("/v2/models/digits/infer", &body).await.json();
    let id = said["parameters"]["prediction_id"].as_str().unwrap().to_owned();
    assert_eq!(said["parameters"]["prediction_count"], 3);
    let one = server.post("/v1/feedback", &json!({"prediction_id": id, "label": "zero"}).to_string()).await;
    assert_eq!(one.json(), json!({"matched": 1, "correct": 1, "unmatched": {}, "compared": {}}));
    let foreign = id.replace("dev-1", "dev-2");
    let many = json!({
        "source": "kiosk-1",
        "labels": [
            {"prediction_id": id, "row": 1, "label": 1},
            {"prediction_id": id, "row": 2, "label": "3"},
            {"prediction_id": id, "label": 0},
            {"prediction_id": foreign, "label": 0},
            {"prediction_id": id, "row": 3, "label": 0},
        ],
    });
    let many = server.post("/v1/feedback", &many.to_string()).await.json();
    assert_eq!((&many["matched"], &many["correct"]), (&json!(2), &json!(1)));
    assert_eq!(many["unmatched"], json!({"duplicate": 1, "foreign": 1, "unknown-id": 1}));
    server.monitor.flush();
    let records = server.kept.0.lock();
    let labels: Vec<_> =
        records.iter().filter_map(|r| if let RecordBody::Labels(l) = r { Some(l) } else { None }).collect();
    let told: Vec<_> = labels.iter().map(|l| (l.source.as_str(), l.matched, l.correct)).collect();
    assert_eq!(told, [("local", 1, 1), ("local:kiosk-1", 2, 1), ("local:kiosk-1", 0, 0)]);
    assert_eq!(labels[1].confusion, [("one".into(), "one".into(), 1), ("three".into(), "two".into(), 1)]);
    assert!(labels.iter().all(|l| l.bundle.to_string() == "digits@2" && l.attempt.to_string() == "r1/2"));
    let window =
        records.iter().find_map(|r| if let RecordBody::Window(w) = r { Some(w) } else { None }).unwrap();
    let classes = [("zero".to_owned(), 1), ("one".to_owned(), 1), ("two".to_owned(), 1)];
    assert_eq!(window.classes, classes.into());
}
