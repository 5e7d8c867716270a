//! Sends what is ready and waits for the head of the answer. No redirect is followed, nothing is sent twice.

use http::Response;

use super::{
    error::PipelineError,
    inject::{Credential, Ready},
    parse::Asked,
    place::Placed,
};
use crate::upstream::{Answer, NoAnswer, Upstreams};

/// An answer that has begun.
#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) placed: Placed,
    pub(super) method: http::Method,
    pub(super) asked: Asked,
    pub(super) credential: Option<Credential>,
    pub(super) response: Response<Answer>,
}

/// Sends a request. Dropping the future aborts it at the upstream (R17).
pub(super) async fn forward(ready: Ready, upstreams: &Upstreams) -> Result<Streaming, PipelineError> {
    let (placed, request, asked, credential) = ready.into_parts();
    let method = request.method().clone();
    let answer = upstreams.send(&placed.run().id, request).await;
    // A body that was refused on its way explains whatever came of it.
    if let Some(fault) = asked.fault() {
        return Err(fault);
    }
    let server = placed.server().name.to_string();
    match answer {
        Ok(response) => Ok(Streaming { placed, method, asked, credential, response }),
        Err(NoAnswer::Connect(cause)) => Err(PipelineError::Connect { server, cause }),
        Err(NoAnswer::FirstByte) => Err(PipelineError::FirstByte { server }),
        Err(NoAnswer::Lost) => Err(PipelineError::Lost { server }),
        Err(NoAnswer::Invalid) => Err(PipelineError::Invalid { server, what: "it is not HTTP" }),
    }
}
