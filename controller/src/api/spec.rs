//! The OpenAPI document around the routes: title, security schemes, and the problem every route may answer.

use super::problem::{PROBLEM_JSON, ProblemBody};
use utoipa::{
    OpenApi as _,
    openapi::{
        Content, OpenApi, Ref, RefOr, Response,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Edgefleet", description = "One controller of a fleet of edge devices that infer.",
        license(name = "MIT OR Apache-2.0")),
    components(schemas(ProblemBody)),
    tags(
        (name = "devices", description = "Enrolled agents"),
        (name = "invites", description = "How devices come in"),
        (name = "people", description = "Tokens and the audit log"),
        (name = "device", description = "What devices call"),
        (name = "models", description = "Bundles and their blobs"),
        (name = "rollouts", description = "Which devices get which bundle"),
        (name = "telemetry", description = "What devices counted, and labels"),
        (name = "captures", description = "Inputs kept for labelling, labels, data sets"),
        (name = "findings", description = "What a person has to look at"),
        (name = "monitoring", description = "How models do, by cohort; drift and what to do about it"),
        (name = "settings", description = "How devices behave, apart from what they serve"),
        (name = "export", description = "Data for other programs"),
        (name = "alerts", description = "What people are told by webhook and mail"),
        (name = "system", description = "Health, metrics, version"),
    )
)]
struct Base;

/// The document before any route.
pub(super) fn base() -> OpenApi {
    let mut document = Base::openapi();
    let components = document.components.get_or_insert_default();
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description =
        Some("A token of a role; the scopes name the permission that the role must have.".to_owned());
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let description = Some("The certificate the device got when it enrolled.".to_owned());
    components.add_security_scheme(
        "device",
        SecurityScheme::MutualTls { description, deprecated: None, extensions: None },
    );
    let mut problem = Response::new("A refusal or a failure, as RFC 9457 problem with a code");
    let schema = Ref::from_schema_name("ProblemBody");
    problem.content.insert(PROBLEM_JSON.to_owned(), RefOr::T(Content::new(Some(schema))));
    components.responses.insert("Problem".to_owned(), RefOr::T(problem));
    document
}

/// Says of every route that it may answer with a problem.
pub(super) fn finish(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete, &mut item.head];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            let problem = || RefOr::Ref(Ref::from_response_name("Problem"));
            responses.entry("default".to_owned()).or_insert_with(problem);
        }
    }
}
