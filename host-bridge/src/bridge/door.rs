//! What is behind the tunnels: the pipeline.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use moat_shared::{rpc::OwnError, wire::ErrorKind};

use crate::{registry::Run, tunnel::Door};

/// Hands requests to the pipeline.
pub(crate) struct Front;

impl Door for Front {
    type Body = Full<Bytes>;

    async fn handle(&self, run: &Arc<Run>, request: Request<Incoming>) -> Response<Self::Body> {
        let message = format!("moat: {} has no way to {}", run.id, request.uri().path());
        let kind = ErrorKind::Internal;
        let error = OwnError { id: None, kind, server: None, message: &message, code: OwnError::CODE };
        let mut response = Response::new(Full::from(error.body()));
        *response.status_mut() = StatusCode::from_u16(kind.status()).unwrap_or_default();
        response
    }
}
