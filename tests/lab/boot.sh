# How a pretend host boots: becomes its PID 1. Runs as the first process in its new namespaces.
#
#   boot.sh NAME ADDRESS HEAD_ADDRESS HEAD_MAC HOSTS FOLDER SHARED INIT...
#
# HOSTS: its /etc/hosts. FOLDER: the host's own, with machine-id, boot_id and, where the home is
# its own, tree. SHARED: what such a tree is mounted over. $KEPT: what programs and files need below
# the private folders, one path a line.
set -eu
name=$1 address=$2 head_address=$3 head_mac=$4 hosts=$5 folder=$6 shared=$7
shift 7

private() { # an empty folder instead of this one, but for what is kept
  mount -n -t tmpfs -o mode=1777 tmpfs "$folder/stage"
  printf '%s\n' "$KEPT" | while read -r path; do
    case $path in "$1"/*)
      mkdir -p "$folder/stage${path#"$1"}"
      mount -n --bind "$path" "$folder/stage${path#"$1"}" ;;
    esac
  done
  mount -n --move "$folder/stage" "$1"
}

read -r pid rest < /proc/self/stat # as those outside call it: /proc is still theirs
echo "$pid"
read -r plugged # the cable is in
hostname "$name"
ip -batch - << EOF
link set lo up
addr add $address/24 dev eth0
link set eth0 up
neigh add $head_address lladdr $head_mac dev eth0 nud permanent
EOF
mount -n -t proc proc /proc
mount -n --bind "$folder/boot_id" /proc/sys/kernel/random/boot_id
mount -n --bind "$hosts" /etc/hosts
if test -e /etc/machine-id; then mount -n --bind "$folder/machine-id" /etc/machine-id; fi
for place in /tmp /run /dev/shm; do private $place; done
if test -e "$folder/tree"; then mount -n --bind "$folder/tree" "$shared"; fi
unset KEPT
exec "$@"
