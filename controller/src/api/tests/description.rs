//! The OpenAPI document: served as it is, and true about the types of the other crate. What all of it says is
//! pinned where the whole controller is put together.

use super::server::TestServer;
use crate::{
    api::access::rules_of,
    fleet::testing::{ADDRESS, TestDevice},
};
use edgefleet_shared::enroll::{ENROLL_SCHEMA, EnrollResponse, RenewRequest, RenewResponse};
use serde_json::Value;
use std::collections::BTreeSet;
use utoipa_axum::{router::OpenApiRouter, routes};

#[tokio::test]
async fn the_document_is_served_as_it_was_made() {
    let server = TestServer::start().await;
    let served =
        server.client(None).get(server.url("/openapi.json")).send().await.unwrap().text().await.unwrap();
    assert_eq!(served, server.document);
    let document: Value = serde_json::from_str(&served).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
}

#[tokio::test]
async fn the_described_messages_are_those_that_devices_send_and_get() {
    let server = TestServer::start().await;
    let document: Value = serde_json::from_str(&server.document).unwrap();
    let described = |schema: &Value| -> BTreeSet<String> {
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let keys = |value: Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let schemas = &document["components"]["schemas"];

    let (device, code) = (TestDevice::new(), server.test.invite(1).await.code);
    let mut request = device.request_as(&code, &"dev-1".parse().unwrap());
    request.name = Some("name".into());
    assert_eq!(described(&schemas["EnrollRequest"]), keys(serde_json::to_value(&request).unwrap()));
    let response = server.test.fleet.enroll(&device.request(&code), ADDRESS).await.unwrap();
    let EnrollResponse::Enrolled(enrolled) = response else { panic!("pending") };
    assert_eq!(described(&schemas["Enrolled"]), keys(serde_json::to_value(&*enrolled).unwrap()));
    let pem = String::new;
    let renew = RenewRequest { schema: ENROLL_SCHEMA, csr: pem(), certificate: Some(pem()) };
    assert_eq!(described(&schemas["RenewRequest"]), keys(serde_json::to_value(&renew).unwrap()));
    let renewed = RenewResponse { certificate: pem(), ca: pem() };
    assert_eq!(described(&schemas["RenewResponse"]), keys(serde_json::to_value(&renewed).unwrap()));
}

/// Open to everybody by mistake.
#[utoipa::path(get, path = "/forgotten", responses((status = 200, description = "Oops")))]
async fn forgotten() {}

/// Asks for something that does not exist.
#[utoipa::path(get, path = "/misspelt", security(("bearer" = ["devices:wrtie"])),
    responses((status = 200, description = "Oops")))]
async fn misspelt() {}

#[test]
fn a_route_that_does_not_say_who_may_call_it_stops_the_start() {
    let forgotten = OpenApiRouter::<()>::new().routes(routes!(forgotten)).into_openapi();
    assert!(rules_of(&forgotten).unwrap_err().to_string().contains("GET /forgotten"));
    let misspelt = OpenApiRouter::<()>::new().routes(routes!(misspelt)).into_openapi();
    assert!(rules_of(&misspelt).unwrap_err().to_string().contains("devices:wrtie"));
}
