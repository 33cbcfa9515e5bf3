//! The Open Inference Protocol as bytes, JSON and protocol buffers: requests to tensors, tensors to responses. Pure.
//!
//! Source: Open Inference Protocol v2 and Triton's "Binary Tensor Data", "Classification" and
//! "Parameters" extensions, as the stock `tritonclient` uses them.

mod bounded;
pub mod classify;
pub mod compact;
mod contents;
mod fit;
pub mod json;
pub mod proto;
pub mod protobuf;
pub mod request;
pub mod response;

pub use fit::{Memory, NoMemory, Place, RequestedOutput, Urgency};
pub use request::InferRequest;
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
    /// It is not for this client.
    #[error("{0}")]
    Forbidden(String),
    /// There is no room for it now.
    #[error("{0}")]
    Busy(String),
    /// The model answered what its own interface does not promise.
    #[error("{0}")]
    Model(String),
}

#[cfg(test)]
mod tests;
