//! The device flow (RFC 8628): the person opens a page on any device and types a code; moat asks until it is done.

use std::time::Duration;

use jiff::Timestamp;
use moat_shared::secret::Secret;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    guard::Guard,
    http::{Http, Limits, NoAnswer},
    json,
    refresh::Class,
    token::{self, Client, Refused, Tokens, printable},
};

pub(crate) const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The pause between two questions, unless the server says another.
const INTERVAL: u64 = 5;
/// The longest pause, whatever the server says.
const INTERVAL_MAX: u64 = 60;
/// How long a code is good for at most.
const LIFE_MAX: u64 = 3600;

/// What the person has to do, and what is asked for meanwhile.
#[derive(Debug)]
pub(crate) struct Device {
    code: Secret<String>,
    pub(crate) user_code: String,
    pub(crate) page: Url,
    interval: Duration,
    until: Instant,
}

#[derive(Deserialize)]
struct Given {
    device_code: Option<String>,
    user_code: Option<String>,
    verification_uri: Option<String>,
    verification_uri_complete: Option<String>,
    expires_in: Option<u64>,
    interval: Option<u64>,
}

/// Why it did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceError {
    Unreachable(Class),
    Refused(Refused),
    Unusable,
    Expired,
}

/// Asks for a code.
pub(crate) async fn begin(
    http: &Http,
    guard: Guard,
    endpoint: &Url,
    client: &Client,
    scope: Option<&str>,
    resource: Option<&str>,
) -> Result<Device, DeviceError> {
    let mut fields = Vec::new();
    fields.extend(scope.map(|scope| ("scope", scope)));
    fields.extend(resource.map(|resource| ("resource", resource)));
    let request = token::request(endpoint, client, &fields).map_err(|_| DeviceError::Unusable)?;
    let answer = http.send(request, guard, Limits::COURTESY).await;
    let answer = answer.map_err(|error: NoAnswer| DeviceError::Unreachable(error.class()))?;
    if answer.status.as_u16() != 200 {
        return Err(token::judge(&answer).map_or_else(DeviceError::Refused, |_| DeviceError::Unusable));
    }
    let given = json::object(&answer).and_then(|value| serde_json::from_value::<Given>(value).ok());
    let given = given.ok_or(DeviceError::Unusable)?;
    let (Some(code), Some(user_code), Some(page)) =
        (given.device_code, given.user_code, given.verification_uri.or(given.verification_uri_complete))
    else {
        return Err(DeviceError::Unusable);
    };
    let page = Url::parse(&page).ok().filter(super::browser::is_openable).ok_or(DeviceError::Unusable)?;
    let life = given.expires_in.unwrap_or(LIFE_MAX).min(LIFE_MAX);
    Ok(Device {
        code: Secret::new(code),
        user_code: printable(&user_code, 64),
        page,
        interval: Duration::from_secs(given.interval.unwrap_or(INTERVAL).clamp(1, INTERVAL_MAX)),
        until: Instant::now() + Duration::from_secs(life),
    })
}

impl Device {
    /// Asks until there are tokens. The time is that of the request which brought them.
    pub(crate) async fn tokens(
        mut self,
        http: &Http,
        guard: Guard,
        endpoint: &Url,
        client: &Client,
        resource: Option<&str>,
        patience: Duration,
    ) -> Result<(Tokens, Timestamp), DeviceError> {
        self.until = self.until.min(Instant::now() + patience);
        while Instant::now() + self.interval < self.until {
            sleep(self.interval).await;
            let mut fields = vec![("grant_type", GRANT_TYPE), ("device_code", self.code.expose().as_str())];
            fields.extend(resource.map(|resource| ("resource", resource)));
            let request = token::request(endpoint, client, &fields).map_err(|_| DeviceError::Unusable)?;
            let sent = Timestamp::now();
            // A question that gets no answer is asked again: RFC 8628 section 3.5.
            let Ok(answer) = http.send(request, guard, Limits::TOKENS).await else { continue };
            let refused = match token::judge(&answer) {
                Ok(tokens) => return Ok((tokens, sent)),
                Err(refused) => refused,
            };
            match refused.error.as_deref() {
                Some("authorization_pending") => {}
                Some("slow_down") => self.interval += Duration::from_secs(INTERVAL),
                Some("expired_token") => return Err(DeviceError::Expired),
                None if matches!(refused.class, Class::ServerError | Class::Throttled) => {}
                _ => return Err(DeviceError::Refused(refused)),
            }
        }
        Err(DeviceError::Expired)
    }
}
