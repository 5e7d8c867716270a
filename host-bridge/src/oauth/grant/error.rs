//! Why there is no grant, and what a person can do about it.

use moat_shared::grant::GrantName;

use crate::oauth::{
    client::ClientError, device::DeviceError, discovery::DiscoveryError, guard::Forbidden, refresh::Class,
    token::Refused,
};

/// Why nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantError {
    #[error("{0}")]
    Discovery(DiscoveryError),
    #[error("{what} {why}")]
    Url { what: &'static str, why: Forbidden },
    #[error(transparent)]
    Client(ClientError),
    #[error("the port for the sign-in cannot be opened: {0}")]
    Listener(String),
    #[error("the system gives no random bytes")]
    Random,
    #[error("timed out waiting for authorization callback")]
    TimedOut { reused_client: bool },
    #[error("authorization failed: the answer came from another issuer")]
    OtherIssuer { said: Option<String>, explicit: bool },
    #[error("authorization failed: oauth error: {error}{}", description.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
    Refused { error: String, description: Option<String> },
    #[error("exchanging code: {0}")]
    Exchange(String),
    #[error("{host} does not accept the new token")]
    NotAccepted { host: String },
    #[error("the server has no device flow")]
    NoDevice,
    #[error("device sign-in: {0}")]
    Device(String),
    #[error("the credential cannot be kept: {0}")]
    Storage(String),
}

impl GrantError {
    /// What a person can do about it.
    pub(crate) fn remedy(&self, grant: &GrantName, port: Option<u16>) -> Option<String> {
        let command = grant.command();
        match self {
            Self::Discovery(error) => error.remedy(),
            Self::Client(ClientError::None | ClientError::Refused { .. }) => {
                let port = port.unwrap_or(8976);
                Some(format!(
                    "Register an application with the server, with the redirect URI http://127.0.0.1:{port}/callback, \
                     then:\n  {command} --client-id <id> --redirect-port {port}\nand --client-secret - if it has a \
                     secret."
                ))
            }
            Self::Client(ClientError::OtherIssuer { .. }) => Some(format!(
                "If that is right: moat revoke {grant}, then grant it again with the client of the new issuer."
            )),
            Self::TimedOut { reused_client } => {
                let again = if *reused_client {
                    format!(
                        "\nThe server may have forgotten the client that moat registered there:\n  {command} --new-client"
                    )
                } else {
                    String::new()
                };
                Some(format!(
                    "If the browser showed an error instead of a sign-in page: the redirect URI may not be registered \
                     (--redirect-port), or the server does not take 'resource' (--no-resource).{again}"
                ))
            }
            Self::OtherIssuer { said: Some(said), explicit: true } => Some(format!(
                "If that is the right issuer, add to ~/.moat/oauth/{}.yaml:\n  issuer: {said}",
                name_of(grant)
            )),
            Self::Url { why: Forbidden::Address, .. } => {
                Some(format!("If it is in your own network:\n  {command} --allow-private-network"))
            }
            Self::NoDevice => Some(format!("Without it:\n  {command} --no-browser")),
            Self::Refused { error, .. } if error == "invalid_target" => {
                Some(format!("The server does not take this resource:\n  {command} --no-resource"))
            }
            Self::NotAccepted { .. } => Some(format!(
                "Nothing was stored; what was granted before stays. The server may want other scopes or another \
                 resource:\n  {command} --scopes \"...\"\n  {command} --resource <uri>\nTo store the token all the same: \
                 --no-verify"
            )),
            Self::Exchange(_) | Self::Device(_) => {
                Some(format!("Nothing was stored. To try again:\n  {command}"))
            }
            _ => None,
        }
    }
}

fn name_of(grant: &GrantName) -> &str {
    grant.as_str().strip_prefix("oauth:").unwrap_or(grant.as_str())
}

pub(super) fn refusal(refused: &Refused) -> String {
    let said = match (&refused.error, &refused.description) {
        (Some(error), Some(description)) => format!(" ({error}: {description})"),
        (Some(error), None) => format!(" ({error})"),
        (None, _) if refused.class == Class::UnusableAnswer => " without a usable token".to_owned(),
        (None, _) => String::new(),
    };
    format!("token endpoint returned {}{said}", refused.status)
}

pub(super) fn device_failed(error: DeviceError) -> GrantError {
    GrantError::Device(match error {
        DeviceError::Unreachable(class) => class.words().to_owned(),
        DeviceError::Refused(refused) => refusal(&refused),
        DeviceError::Unusable => "the server's answer cannot be used".to_owned(),
        DeviceError::Expired => "the code was not entered in time".to_owned(),
    })
}
