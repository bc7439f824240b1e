//! Unix sockets.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

/// Binds a unix socket at `path` with the permissions `mode`, in place of one that a killed process left behind.
///
/// The socket is made under another name and moved into place, so that it never stands there with other permissions
/// and a client never meets a socket without a listener.
///
/// # Errors
/// The directory cannot be made or written, or something other than a socket is in the way.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;

    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && !metadata.file_type().is_socket()
    {
        let message = format!("{} is in the way: it is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the socket has no name"))?;
    let made = directory.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let _ = std::fs::remove_file(&made);
    let listener = UnixListener::bind(&made)?;
    let placed = std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&made, path));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&made);
        return Err(error);
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/agent.sock");
        let first = bind_unix(&path, 0o600).unwrap();
        let _second = bind_unix(&path, 0o660).unwrap();
        drop(first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        tokio::net::UnixStream::connect(&path).await.unwrap();

        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(bind_unix(&file, 0o600).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }
}
