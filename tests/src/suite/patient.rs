//! rmcp's HTTP client, but patient: in a session it calls no tool before its GET stream stands.
//!
//! A server may ask its client on that stream, and drops the question when there is none yet. Client and suite leave it
//! to chance which of the two requests comes first; on a busy machine that would make checks differ, with or without
//! moat in between.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use rmcp::{
    model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::Sse;
use tokio::sync::watch;

/// How long the stream may take. A client without one calls its tools all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// The client.
#[derive(Debug, Clone)]
pub(super) struct Patient<C> {
    inner: C,
    opened: watch::Sender<bool>,
}

impl<C> Patient<C> {
    pub(super) fn new(inner: C) -> Self {
        Self { inner, opened: watch::Sender::new(false) }
    }
}

type Failure<C> = StreamableHttpError<<C as StreamableHttpClient>::Error>;

impl<C: StreamableHttpClient + Sync> StreamableHttpClient for Patient<C> {
    type Error = C::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        authorization: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure<C>> {
        let calls = matches!(&message, JsonRpcMessage::Request(request)
            if matches!(request.request, ClientRequest::CallToolRequest(_)));
        if calls && session.is_some() {
            let mut opened = self.opened.subscribe();
            let _called_without = tokio::time::timeout(PATIENCE, opened.wait_for(|opened| *opened)).await;
        }
        self.inner.post_message(uri, message, session, authorization, headers).await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        authorization: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure<C>> {
        self.inner.delete_session(uri, session, authorization, headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last: Option<String>,
        authorization: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure<C>> {
        let stream = self.inner.get_stream(uri, session, last, authorization, headers).await;
        // A refusal is an answer too: this server asks elsewhere.
        self.opened.send_replace(true);
        stream
    }
}
