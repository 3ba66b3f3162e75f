#!/usr/bin/env bash
# A throw-away SLURM cluster of two emulated nodes on this machine, for tests: no systemd, no cgroups, no accounting.
#
#   scripts/slurm_cluster.sh install | start | stop | status
#   eval "$(scripts/slurm_cluster.sh env)"       # then sbatch, squeue and scontrol mean this cluster
#
# It needs root, and Debian's or Ubuntu's packages (`install` fetches them): they are built with multiple slurmd, so
# that several nodes can share a machine. Everything lives in SLURM_TEST_DIR, and in marked lines of /etc/hosts, which
# `stop` removes. Partitions: main (default, jobs may be preempted) and high, which preempts it by requeueing.
set -euo pipefail

DIR=${SLURM_TEST_DIR:-/tmp/slurm-test} # short: a Unix socket's path has at most 108 characters
NODES=${SLURM_TEST_NODES:-2}
CPUS=${SLURM_TEST_CPUS:-4} # that each node claims to have; the machine may have fewer
PORT=${SLURM_TEST_PORT:-16817} # of the controller; node i listens on PORT + i
GRACE=${SLURM_TEST_GRACE:-30} # seconds that a preempted job has
KILL_WAIT=${SLURM_TEST_KILL_WAIT:-20} # seconds between SIGTERM and SIGKILL
HOST=$(uname -n)
HOST=${HOST%%.*}
MARK="# slurm-test $DIR"
export SLURM_CONF=$DIR/slurm.conf
COMMANDS=(slurmctld slurmd sbatch srun squeue scontrol munged)

die() {
    echo "error: $*" >&2
    exit 2
}

missing() {
    local command
    for command in "${COMMANDS[@]}"; do
        command -v "$command" > /dev/null || echo "$command"
    done
}

need_root() {
    [ "$(id -u)" = 0 ] || die "the daemons of the test cluster need root; you are $(id -un)"
}

install_packages() {
    [ -n "$(missing)" ] || return 0
    need_root
    command -v apt-get > /dev/null || die "$(missing | tr '\n' ' ')not found, and no apt-get to install them with"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null
}

write_config() {
    local node
    mkdir -p "$DIR"/{state,log,munge,spool}
    chmod 755 "$DIR" "$DIR/munge"
    (umask 077 && head -c 128 /dev/urandom > "$DIR/munge/key")
    cat > "$SLURM_CONF" << CONF
ClusterName=throwaway
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits cred_expire + 1 s; less than 5 means 120.
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmdTimeout=15
ReturnToService=2
JobRequeue=1
FirstJobId=$((RANDOM + 1000))
KillWait=$KILL_WAIT
OverTimeLimit=0
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
CONF
    : > "$DIR/gres.conf"
    for node in $(seq "$NODES"); do
        mkdir -p "$DIR/spool/n$node"
        # The GPUs are device files of another kind: enough for the scheduler to count.
        echo "NodeName=n$node NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + node)) CPUs=$CPUS RealMemory=8000" \
            "Gres=gpu:2 State=UNKNOWN" >> "$SLURM_CONF"
        echo "NodeName=n$node Name=gpu File=/dev/tty[1-2]" >> "$DIR/gres.conf"
    done
    cat >> "$SLURM_CONF" << CONF
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=30 State=UP PriorityTier=1 GraceTime=$GRACE
PartitionName=high Nodes=ALL MaxTime=1-0 State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

start() {
    need_root
    [ -z "$(missing)" ] || die "$(missing | tr '\n' ' ')not found; scripts/slurm_cluster.sh install"
    stop # what an earlier run left
    trap '[ $? = 0 ] || stop' EXIT
    write_config
    local node
    for node in $(seq "$NODES"); do
        echo "127.0.0.1 n$node $MARK" >> /etc/hosts # rank 0 is looked up by the name of its node
    done
    munged --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
        --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed"
    slurmctld -c
    for node in $(seq "$NODES"); do
        slurmd -c -N "n$node"
    done
    for _ in $(seq 150); do
        [ "$(sinfo -h -N -p main -t idle -o %N 2> /dev/null | wc -l)" = "$NODES" ] && break
        sleep 0.2
    done
    if ! timeout 30 srun --nodes="$NODES" --ntasks-per-node=1 --job-name=ready true; then
        tail -n 20 "$DIR"/log/* >&2 || true
        die "the cluster did not start; the ends of its logs are above"
    fi
}

running() { # a zombie is not: nobody may be there to reap it
    local state
    state=$(sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -c1) && [ -n "$state" ] && [ "$state" != Z ]
}

end_process() {
    running "$1" || return 0
    kill "$1" 2> /dev/null || true
    for _ in $(seq 50); do
        running "$1" || return 0
        sleep 0.1
    done
    kill -9 "$1" 2> /dev/null || true
}

stop() {
    need_root
    [ -f "$SLURM_CONF" ] || return 0
    local jobs file process
    if [ -f "$DIR/slurmctld.pid" ] && running "$(cat "$DIR/slurmctld.pid")"; then
        jobs=$(timeout 10 squeue -h -o %A 2> /dev/null | sort -u | tr '\n' ' ') || true
        if [ -n "${jobs// /}" ]; then
            # shellcheck disable=SC2086 # a list of numbers
            { timeout 10 scancel --state=PENDING $jobs; timeout 10 scancel --signal=KILL --full $jobs; \
                timeout 10 scancel $jobs; } 2> /dev/null || true
            for _ in $(seq 50); do
                [ -z "$(timeout 10 squeue -h 2> /dev/null)" ] && break
                sleep 0.2
            done
        fi
    fi
    for file in "$DIR"/slurmd-*.pid "$DIR/slurmctld.pid" "$DIR/munge/pid"; do
        [ -f "$file" ] && end_process "$(cat "$file")"
    done
    # Steps that outlived their slurmd: those, and only those, whose environment names this cluster and a job.
    for process in $(grep -lsxzF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
        process=${process%/environ}
        if [ "$(cat "$process/comm" 2> /dev/null)" = slurmstepd ] || grep -qsz '^SLURM_JOB_ID=' "$process/environ"; then
            kill -9 "${process#/proc/}" 2> /dev/null || true
        fi
    done
    # In place: /etc/hosts is a mount of its own in containers.
    grep -vF "$MARK" /etc/hosts > "$DIR/hosts" || true
    cat "$DIR/hosts" > /etc/hosts
    rm -rf "$DIR"
}

case ${1:-} in
    install) install_packages ;;
    start) start ;;
    stop) stop ;;
    status) sinfo -N -l && squeue ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    *) die "usage: scripts/slurm_cluster.sh install | start | stop | status | env" ;;
esac
