//! Who is at the other end of a connection.

use super::problem::Problem;
use crate::fleet::certificate::DeviceCertificate;
use axum::{extract::FromRequestParts, http::StatusCode, http::request::Parts};
use std::{net::SocketAddr, sync::Arc};

/// Put into every request by the listener; never taken from headers, which anybody can write.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Present if the client showed a certificate of our authority that names a device. Whether the device is
    /// admitted is another question.
    pub certificate: Option<Arc<DeviceCertificate>>,
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the listener did not say who is calling",
            )
        })
    }
}
