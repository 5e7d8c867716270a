//! The sidecar in an engine: put there once, and mounted read-only by every container of its version.
//!
//! ```text
//! moat-sidecar.<digest> ──label──► moat-sidecar.<digest>.<random>
//! says which volume is whole        has the file; filled before anybody hears of it, and never written again
//! ```
//!
//! To upload it into each container would cost as much as everything else that a start adds. An engine gives a name to
//! the first who asks, and tells the others what that one made of it: so what is named is whole, whoever else fills a
//! volume at the same moment, and wherever somebody dies while filling one. It is filled through a container that never
//! starts, of an image with nothing in it: no user's image has a say in what other runs will execute.

use std::collections::HashMap;

use bollard::{
    body_full,
    models::{ContainerCreateBody, HostConfig, Mount, MountType, Volume, VolumeCreateRequest},
    query_parameters::{
        CreateImageOptionsBuilder, ListVolumesOptionsBuilder, RemoveImageOptionsBuilder,
        UploadToContainerOptionsBuilder,
    },
};
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};

use super::{
    archive,
    engine::{self, Engine, EngineError},
    removal::Removal,
};
use crate::runtime::{embed::Sidecar, owner};

/// Which sidecar a volume has: its SHA-256.
const VERSION: &str = "dev.moat.sidecar";
/// Which volume is whole.
const WHOLE: &str = "dev.moat.volume";
/// What of the digest a name has.
const SHORT: usize = 16;
/// Other volumes go when they are older than this and nothing uses them: one that a container is just about to use is
/// not removed under it.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Tries, where somebody removes what was just made.
const TRIES: usize = 3;

/// The volume with this sidecar, which is filled first where there is none.
pub(super) async fn with(
    engine: &Engine,
    sidecar: Sidecar,
    labels: &HashMap<String, String>,
) -> Result<String, EngineError> {
    for _ in 0..TRIES {
        let volumes = volumes(engine, &format!("{VERSION}={}", sidecar.digest)).await?;
        let name = name(sidecar.digest);
        if let Some(whole) = whole(&volumes, &name) {
            return Ok(whole);
        }
        // It names what somebody has removed.
        if volumes.iter().any(|volume| volume.name == name) {
            remove(engine, &name).await?;
        }
        let filled = fill(engine, sidecar, labels).await?;
        let named = create(engine, &name, &[(VERSION, sidecar.digest), (WHOLE, &filled)]).await?;
        if named.labels.get(WHOLE) == Some(&filled) {
            clear(engine, &[&name, &filled]).await?;
            return Ok(filled);
        }
        // Somebody was faster.
        remove(engine, &filled).await?;
    }
    Err(EngineError::Refused {
        doing: "keeping the sidecar in a volume",
        message: "it is removed each time".to_owned(),
    })
}

/// The name of a version.
fn name(digest: &str) -> String {
    format!("moat-sidecar.{}", &digest[..SHORT.min(digest.len())])
}

/// The volume that this name says is whole, if it is still there.
fn whole(volumes: &[Volume], name: &str) -> Option<String> {
    let named = volumes.iter().find(|volume| volume.name == name)?.labels.get(WHOLE)?;
    volumes.iter().any(|volume| volume.name == *named).then(|| named.clone())
}

/// A new volume with the sidecar in it.
async fn fill(
    engine: &Engine,
    sidecar: Sidecar,
    labels: &HashMap<String, String>,
) -> Result<String, EngineError> {
    let random = owner::random();
    let volume = format!("{}.{random}", name(sidecar.digest));
    create(engine, &volume, &[(VERSION, sidecar.digest)]).await?;
    let image = format!("localhost/moat/empty:{random}");
    let filled = fill_from(engine, &image, &volume, sidecar, labels).await;
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    let removed = engine.api.remove_image(&image, Some(options), None).await;
    if let Err(error) = filled {
        // Best effort: the first error is the one to tell, and what is left here goes with the next version.
        let _left = remove(engine, &volume).await;
        return Err(error);
    }
    asked("removing an empty image", removed)?;
    Ok(volume)
}

async fn fill_from(
    engine: &Engine,
    image: &str,
    volume: &str,
    sidecar: Sidecar,
    labels: &HashMap<String, String>,
) -> Result<(), EngineError> {
    let empty = archive::empty().map_err(EngineError::Archive)?;
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(image).build();
    let imported = engine.api.create_image(Some(options), Some(body_full(empty.into())), None);
    asked("importing an empty image", imported.try_collect::<Vec<_>>().await)?;
    let container = owner::name();
    let mut labels = labels.clone();
    labels.insert(owner::NAME.to_owned(), container.clone());
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec![archive::sidecar()]),
        network_disabled: Some(true),
        labels: Some(labels),
        host_config: Some(HostConfig { mounts: Some(vec![mount(volume, false)]), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let made = super::made(engine, &container, body).await?;
    let archive = archive::of_sidecar(sidecar.bytes).map_err(EngineError::Archive)?;
    let options = UploadToContainerOptionsBuilder::new().path(archive::AT).build();
    let uploaded = engine.api.upload_to_container(made.id(), Some(options), body_full(archive.into())).await;
    removed(made).await?;
    asked("putting the sidecar into a volume", uploaded)
}

/// Its removal blocks.
async fn removed(container: Removal) -> Result<(), EngineError> {
    let removed = tokio::task::spawn_blocking(move || drop(container)).await;
    removed.map_err(|error| EngineError::Archive(std::io::Error::other(error)))
}

/// Where containers have it.
pub(super) fn mount(volume: &str, read_only: bool) -> Mount {
    Mount {
        source: Some(volume.to_owned()),
        target: Some(archive::AT.to_owned()),
        typ: Some(MountType::VOLUME),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

async fn create(engine: &Engine, name: &str, labels: &[(&str, &str)]) -> Result<Volume, EngineError> {
    let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    let request = VolumeCreateRequest {
        name: Some(name.to_owned()),
        labels: Some(labels),
        ..VolumeCreateRequest::default()
    };
    asked("making a volume", engine.api.create_volume(request).await)
}

/// One that is gone already is as good; one that is used stays.
async fn remove(engine: &Engine, name: &str) -> Result<(), EngineError> {
    match engine.api.remove_volume(name, None::<bollard::query_parameters::RemoveVolumeOptions>).await {
        Err(error) if !engine::is_over(&error) => asked("removing a volume", Err(error)),
        _ => Ok(()),
    }
}

/// Those with this label.
async fn volumes(engine: &Engine, label: &str) -> Result<Vec<Volume>, EngineError> {
    let options = ListVolumesOptionsBuilder::new().filters(&HashMap::from([("label", vec![label])])).build();
    let listed = asked("listing volumes", engine.api.list_volumes(Some(options)).await)?;
    Ok(listed.volumes.unwrap_or_default())
}

/// Removes what other versions, and who died on the way, have left.
async fn clear(engine: &Engine, kept: &[&str]) -> Result<(), EngineError> {
    let now = Timestamp::now();
    for volume in volumes(engine, VERSION).await? {
        if !kept.contains(&volume.name.as_str()) && is_old(&volume, now) {
            remove(engine, &volume.name).await?;
        }
    }
    Ok(())
}

fn is_old(volume: &Volume, now: Timestamp) -> bool {
    let made = volume.created_at.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
    made.is_some_and(|made| now.duration_since(made) > KEPT)
}

fn asked<T>(doing: &'static str, answer: Result<T, bollard::errors::Error>) -> Result<T, EngineError> {
    answer.map_err(|source| EngineError::Asking { doing, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, labels: &[(&str, &str)], made: &str) -> Volume {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Volume { name: name.into(), labels, created_at: Some(made.into()), ..Volume::default() }
    }

    #[test]
    fn a_volume_is_whole_when_it_is_named_and_there() {
        let digest = "0123456789abcdef0123";
        let name = name(digest);
        assert_eq!(name, "moat-sidecar.0123456789abcdef");
        let filled = volume("filled", &[(VERSION, digest)], "");
        let named = volume(&name, &[(VERSION, digest), (WHOLE, "filled")], "");
        assert_eq!(whole(&[filled.clone(), named.clone()], &name).as_deref(), Some("filled"));
        assert_eq!(whole(&[filled], &name), None, "somebody died while filling it");
        assert_eq!(whole(&[named], &name), None, "it was removed by hand");
        assert_eq!(whole(&[volume(&name, &[], "")], &name), None, "made by an engine for a container");
    }

    #[test]
    fn what_is_left_goes_when_it_is_old() {
        let now = "2026-03-10T12:00:00Z".parse().unwrap();
        let old = |made| is_old(&volume("v", &[(VERSION, "other")], made), now);
        assert!(old("2026-03-01T10:00:00+01:00"));
        assert!(!old("2026-03-09T10:00:00Z"), "somebody may be about to use it");
        assert!(!old("yesterday"));
    }
}
