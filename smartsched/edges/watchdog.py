"""What ends a run whose lease has run out, whatever became of whoever started it: text for bash.

It runs beside the run's wrapper, in the same session, but in a process group of its own: signals to
the run's group do not reach it, and while it lives nobody else can be given the number of that
group. It uses nothing but bash's builtins, /proc and the lease's folder, all of them local: no
program is executed, nothing is forked, and no file system that the network has taken away is
touched. It sleeps until the lease, as it was last read, runs out; if that was renewed by then, on.

Of the run are its session, whatever descends from its wrapper, and whoever carries its tag. The
environment, where the tag is, is read last, when the rest is dead: reading that of a process that
hangs in a driver can hang as well.
"""

from smartsched.core.tag import VARIABLES

# When its command has ended while the host is cut off, what that left behind stays under the lease.
# Cut off: the lease was not renewed for so long, while it is every second otherwise.
_CUT_OFF_SECONDS = 5
# What has left the session, and has no parents in it, has so long between the asking and the end.
_STRAYS_GRACE_SECONDS = 1
_MOST_ROUNDS_OF_KILLING = 20


def watchdog() -> str:
    """Makes smartsched_watch a function, for a wrapper. Of its arguments one is the grace in
    seconds: that and four more after the lease has run out, whatever was part of the run is gone,
    unless the kernel cannot end it."""
    return (
        _TEXT.replace("@VARIABLES@", " ".join(VARIABLES))
        .replace("@CUT_OFF@", str(_CUT_OFF_SECONDS * 100))
        .replace("@STRAYS_GRACE@", str(_STRAYS_GRACE_SECONDS * 100))
        .replace("@ROUNDS@", str(_MOST_ROUNDS_OF_KILLING))
    )


# Arguments: the lease, the mark to leave where the lease ended the run, when the lease ends unless
# it says otherwise, the grace in seconds, the signal by which the wrapper is told that it is the
# lease that ends the run: the command may save its state and say that all is well. The mark is for
# whoever finds that the wrapper had to be killed. `$$` is the wrapper: the number of the session
# and of the group. Times are hundredths of a second of the host's uptime. Descriptor 5 is a pipe
# from the wrapper: "done" when the command has ended, and its end when the wrapper was killed; then
# it is opened once more, for both, or nobody could sleep on it any more. Whoever was once seen to
# be of the run stays so, known by pid and start time, when its parents are gone.
_TEXT = r"""
smartsched_watch() {
  local lease=$1 mark=$2 ends=$3 grace=$4 over=$5 renewed=0 now=0 left=0 ended= said= status name
  local -a found=() outside=() tags=()
  local -A known=()
  set +m; trap '' {1..8} {10..16} {20..31}; umask 077; LC_ALL=C IFS=$' \t\n'
  for name in @VARIABLES@; do tags+=("$name=${!name}"); done
  while look; ((left > 0)); do
    if [[ $ended ]]; then
      ((now - renewed >= @CUT_OFF@)) && members tagged || return
      nap $((left < @CUT_OFF@ ? left : @CUT_OFF@))
      continue
    fi
    nap "$left"; status=$?
    if [[ $said == "done" ]]; then ended=1; keep_open
    elif ((status <= 128)); then break
    fi
  done
  [[ $ended ]] || ((left > 0)) || { kill "-$over" $$; echo >"$mark"; }
  keep_open; stop; stop_strays
}
look() {
  local expiry since again
  for _ in 1 2 3; do
    read -r expiry since again <"$lease" || break
    [[ $expiry$since =~ ^[0-9]{2,30}$ && $expiry == "$again" ]] || continue
    ends=$((10#$expiry)) renewed=$((10#$since))
    break
  done
  read -r again _ </proc/uptime && now=$((10#${again/./}))
  left=$((ends - now))
}
nap() {
  local time
  printf -v time %d.%02d $(($1 / 100)) $(($1 % 100))
  said=; read -r -t "$time" -u 5 said
}
keep_open() { command exec 5<>/proc/self/fd/5; }
members() {
  local pid stat grown=1; local -a fields
  local -A parents=() groups=() began=() theirs=([$$]=1)
  for pid in /proc/[0-9]*; do
    [[ -O $pid ]] || continue
    pid=${pid#/proc/} stat=
    ((pid == $$ || pid == BASHPID)) && continue
    read -r -d '' stat <"/proc/$pid/stat"
    fields=(${stat##*) })
    [[ ${fields[0]:-Z} == [ZX] ]] && continue
    parents[$pid]=${fields[1]} groups[$pid]=${fields[2]} began[$pid]=${fields[19]}
    if ((fields[3] == $$)) || [[ ${known[$pid]} == "${fields[19]}" ]] ||
      { [[ $1 && ${fields[0]} != D ]] && carries_tag "$pid"; }
    then theirs[$pid]=1
    fi
  done
  while ((grown)); do
    grown=0
    for pid in "${!parents[@]}"; do
      [[ ! ${theirs[$pid]} && ${theirs[${parents[$pid]}]} ]] && theirs[$pid]=1 grown=1
    done
  done
  unset "theirs[$$]"
  found=("${!theirs[@]}") outside=()
  for pid in "${found[@]}"; do
    known[$pid]=${began[$pid]}
    ((groups[$pid] == $$)) || outside+=("$pid")
  done
  ((${#found[@]}))
}
carries_tag() {
  local entry tag count=0
  while IFS= read -r -d '' entry; do
    for tag in "${tags[@]}"; do [[ $entry == "$tag" ]] && ((++count)); done
    ((count < ${#tags[@]})) || return 0
  done <"/proc/$1/environ"
  return 1
}
ask() {
  local signal pid
  for signal in TERM CONT; do
    for pid in "${outside[@]}"; do kill "-$signal" "$pid"; done
    kill "-$signal" -- "-$$"
  done
}
stop() {
  look; local deadline=$((now + grace * 100))
  members; ask
  while members; look; ((${#found[@]} && now < deadline)); do
    nap $((deadline - now < 100 ? deadline - now : 100))
  done
  ((${#found[@]})) || return
  kill -KILL -- "-$$"; end_all
}
stop_strays() {
  members tagged || return
  ask; nap @STRAYS_GRACE@; end_all tagged
}
end_all() {
  local round pid
  for ((round = 0; round < @ROUNDS@; round++)); do
    members $1 || return
    for pid in "${found[@]}"; do kill -KILL "$pid"; done
    nap 5
  done
}
"""
