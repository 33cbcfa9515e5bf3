//! The Open Inference Protocol as bytes: requests to tensors, tensors to responses. Pure.
//!
//! Source: Open Inference Protocol v2 and Triton's "Binary Tensor Data", "Classification" and
//! "Parameters" extensions, as the stock `tritonclient` uses them.

mod bounded;
pub mod classify;
pub mod json;
pub mod request;
pub mod response;

pub use request::{InferRequest, RequestedOutput};
pub use response::{InferResponse, Part};

/// Why a request is not answered. The text is for the client's developer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OipError {
    /// The client can mend it.
    #[error("{0}")]
    Bad(String),
    /// Part of the protocol that this server does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The model answered what its own interface does not promise.
    #[error("{0}")]
    Model(String),
}
