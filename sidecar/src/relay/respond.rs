//! From a request to its response: guard, then route, then method; only what passes all three is forwarded.

use http::{Method, Request, Response, Version, request::Parts};
use hyper::body::Incoming;
use moat_shared::{limits, rpc::RawId, wire::ErrorKind};

use super::{
    Context,
    answer::Answer,
    forward::forward,
    guard::Foreign,
    headers, local,
    local::Refused,
    route::{Route, route},
};
use crate::body::Upload;

/// Answers one request.
pub(crate) async fn respond(context: &Context, request: Request<Incoming>) -> Response<Answer> {
    if let Err(why) = context.guard.check(request.uri(), request.headers()) {
        return foreign(why);
    }
    let (head, body) = request.into_parts();
    let server = match route(head.uri.path()) {
        Route::OAuthProbe => return local::no_oauth(),
        Route::Health => return local::health(&context.run, &context.tunnel),
        Route::Server(server) => Some(server),
        Route::Nowhere => None,
    };
    match (judge(&head, server.is_some()), server) {
        (Ok(()), Some(server)) => Box::pin(forward(context, server, head, body)).await,
        (Err(refused), server) => refused.answer(id_of(context, body).await.as_ref(), server.as_ref()),
        (Ok(()), None) => nowhere(context).answer(id_of(context, body).await.as_ref(), None),
    }
}

/// A foreign Host or Origin: no id, since nothing of such a request is read.
pub(crate) fn foreign(why: Foreign) -> Response<Answer> {
    Refused::new(ErrorKind::HostRefused, why.to_string()).answer(None, None)
}

fn judge(head: &Parts, somewhere: bool) -> Result<(), Refused> {
    if !matches!(head.method, Method::POST | Method::GET | Method::DELETE) {
        let message = "moat: MCP servers take POST, GET and DELETE and no other method";
        return Err(Refused::new(ErrorKind::MethodNotAllowed, message));
    }
    if head.version < Version::HTTP_11 {
        // Its bodies end with the connection, so that one that was cut would look complete (T3).
        return Err(Refused::new(
            ErrorKind::BadRequest,
            "moat: the relay speaks HTTP/1.1 and HTTP/2, nothing older",
        ));
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    if somewhere && headers::are_too_large(target, &head.headers) {
        let message = format!(
            "moat: the request's headers are too large: at most {} bytes in {} lines go through the tunnel",
            limits::HEADER_LIST,
            limits::HEADER_COUNT
        );
        return Err(Refused::headers_too_large(message));
    }
    Ok(())
}

fn nowhere(context: &Context) -> Refused {
    let message = format!(
        "moat: no MCP server is at this path: servers are at http://127.0.0.1:{}/mcp/<name>, by their names in moat.yaml",
        context.port
    );
    Refused::new(ErrorKind::NotConfigured, message)
}

async fn id_of(context: &Context, body: Incoming) -> Option<RawId> {
    let mut upload = Upload::new(body);
    upload.look_for_id(context.timing.refused_body).await;
    upload.noted().id()
}
