//! What is behind the tunnels: the pipeline, which answers every request of a run.

use std::sync::Arc;

use http::{Request, Response};
use moat_shared::rt::h2::received::Received;

use crate::{
    pipeline::{Body, Pipeline},
    registry::Run,
    tunnel::Door,
};

impl Door for Pipeline {
    type Body = Body;

    async fn handle(&self, run: &Arc<Run>, request: Request<Received>) -> Response<Self::Body> {
        Self::handle(self, run, request).await
    }
}
