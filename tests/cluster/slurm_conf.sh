# slurm_conf: prints the slurm.conf of the virtual cluster. What an administrator of a real one would
# set otherwise has a comment.

slurm_conf() {
  local last=$CLUSTER_NODES
  cat <<CONF
ClusterName=virtual
SlurmctldHost=ctl(10.99.0.254)
# A requeued job waits for as long as a credential lives: 120 s by default.
AuthInfo=socket=$CLUSTER/munge/socket,cred_expire=5
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=/var/tmp/slurmd
SlurmctldPidFile=$CLUSTER/slurmctld.pid
SlurmdPidFile=/var/tmp/slurmd.pid
SlurmctldLogFile=$CLUSTER_LOGS/slurmctld.log
SlurmdLogFile=$CLUSTER_LOGS/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
# No control groups: the machine's may be of either version, or not ours.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# A node that was lost is back as soon as it answers.
ReturnToService=2
# 300 s by default; at least 60 s on a real cluster.
SlurmdTimeout=10
# slurmctld speaks to every node itself: a lost one takes none of the others with it.
TreeWidth=65533
KillWait=10
MessageTimeout=5
UnkillableStepTimeout=60
JobRequeue=1
KillOnBadExit=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# From 23.02 on: PreemptParameters=send_user_signal
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=3
CONF
  local node="CPUs=$CLUSTER_TASKS RealMemory=500"
  if ((CLUSTER_GPUS)); then
    echo "GresTypes=gpu"
    node+=" Gres=gpu:$CLUSTER_GPUS"
  fi
  # Hosts of a cloud are switched off until a job needs them, so planning takes them for usable.
  if [[ $CLUSTER_ONLY_CONFIGURED ]]; then
    printf '%s\n' SuspendProgram=/bin/true ResumeProgram=/bin/true SuspendTime=1
    node+=" State=CLOUD"
  fi
  cat <<CONF
NodeName=n[1-$last] NodeAddr=10.99.0.[1-$last] $node
PartitionName=main Nodes=n[1-$last] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-$last] MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
}
