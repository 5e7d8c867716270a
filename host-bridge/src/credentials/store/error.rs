//! Why a credential cannot be had, kept or removed, and what helps.

use std::{borrow::Cow, io, path::PathBuf};

use moat_shared::{grant::GrantName, hint::Hint};

use super::super::{key::KeyError, sealed::SealError};

/// Why a credential cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("grant '{grant}' is not configured")]
    NotConfigured { grant: GrantName },
    #[error(
        "decrypting credential for {grant}: message authentication failed\n  This may indicate the encryption key has changed."
    )]
    Decrypt { grant: GrantName },
    #[error("the credential of '{grant}' cannot be read ({})", path.display())]
    Unreadable {
        grant: GrantName,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: {reason}", path.display())]
    Malformed { grant: GrantName, path: PathBuf, reason: String },
    #[error("{} holds the credential of {found:?}, not of '{grant}'", path.display())]
    Mismatch { grant: GrantName, path: PathBuf, found: String },
    #[error("the credential of '{grant}' cannot be decrypted")]
    Key {
        grant: GrantName,
        #[source]
        source: KeyError,
    },
}

impl Hint for ReadError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let again = |grant: &GrantName| {
            Some(format!("To re-authenticate:\n  moat revoke {grant}\n  {}", grant.command()).into())
        };
        match self {
            Self::NotConfigured { grant } => Some(format!("To fix:\n  {}", grant.command()).into()),
            Self::Decrypt { grant } => Some(format!("To re-authenticate:\n  {}", grant.command()).into()),
            Self::Malformed { grant, .. } | Self::Mismatch { grant, .. } => again(grant),
            Self::Unreadable { path, .. } => {
                Some(format!("Check owner and rights of {}", path.display()).into())
            }
            Self::Key { source, .. } => source.hint(),
        }
    }
}

/// Why a credential cannot be kept or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("no credential found for {0}")]
    NotThere(GrantName),
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Hint for WriteError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Key(error) => error.hint(),
            Self::Seal(_) | Self::NotThere(_) | Self::File { .. } => None,
        }
    }
}

/// Why a grant cannot be bound to a host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Hint for BindError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Write(error) => error.hint(),
        }
    }
}

/// One line, with its cause.
pub(super) fn in_short(error: &ReadError) -> String {
    match error {
        ReadError::Unreadable { source, .. } => format!("{error}: {source}"),
        ReadError::Key { source, .. } => format!("{error}: {source}"),
        ReadError::Decrypt { .. } => "cannot be decrypted: the encryption key has changed".to_owned(),
        _ => error.to_string(),
    }
}
