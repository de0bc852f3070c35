//! The user at the other end of a TCP connection.
//!
//! The kit's server asks the kernel which user connects, and sees the proxy's user: any client of the proxy would be a
//! superuser. So the proxy checks its clients in the same way.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::unistd::Uid;

/// Whether the process that connected from `peer` to `us` belongs to our own user.
///
/// A connection that is closed by now belongs to nobody, and is refused as well.
#[cfg(target_os = "linux")]
pub(super) fn is_ours(peer: SocketAddr, us: SocketAddr) -> io::Result<bool> {
    // The kernel lists sockets in portions, and may skip one while others come and go.
    for _ in 0..3 {
        for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
            let lines = match std::fs::read_to_string(table) {
                Ok(lines) => lines,
                // This machine has no IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
                Err(error) => return Err(error),
            };
            if let Some(owner) = owner_in(&lines, peer, us) {
                return Ok(owner == Uid::effective().as_raw());
            }
        }
    }
    Ok(false)
}

/// Other systems have no such table; a proxy is made there only for servers that check clients themselves.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_ours(_peer: SocketAddr, _us: SocketAddr) -> io::Result<bool> {
    Ok(true)
}

/// Whether this system can tell the user.
pub(super) const KNOWN: bool = cfg!(target_os = "linux");

/// The user of the socket at `peer`, whose table row has the two addresses of our socket reversed.
fn owner_in(lines: &str, peer: SocketAddr, us: SocketAddr) -> Option<u32> {
    const ESTABLISHED: &str = "01";
    let (local, remote) = (in_hex(peer)?, in_hex(us)?);
    lines.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_it = fields.next()?.ends_with(&local) && fields.next()?.ends_with(&remote);
        // A socket that no process holds open is listed as root's.
        if !is_it || fields.next()? != ESTABLISHED {
            return None;
        }
        fields.nth(3)?.parse().ok()
    })
}

/// The address in the kernel's form: a number in the machine's byte order. An IPv4 address in an IPv6 socket has the same
/// ending.
fn in_hex(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()))
}

#[cfg(test)]
mod tests {
    use super::owner_in;

    /// Rows of the listener, the client's socket, ours, and a client that has closed.
    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 6880 1
   1: 0100007F:C001 0100007F:1538 01 00000000:00000000 00:00000000 00000000  1000        0 6881 1
   2: 0100007F:1538 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 6882 1
   3: 0100007F:C002 0100007F:1538 05 00000000:00000000 00:00000000 00000000     0        0 0 1
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_owner_is_that_of_the_clients_socket_while_it_is_open() {
        let us = "127.0.0.1:5432".parse().unwrap();
        let owner = |peer: &str| owner_in(TABLE, peer.parse().unwrap(), us);

        assert_eq!(owner("127.0.0.1:49153"), Some(1000));
        assert_eq!(owner("127.0.0.1:49154"), None, "closed");
        assert_eq!(owner("127.0.0.1:49155"), None, "not listed");
    }
}
