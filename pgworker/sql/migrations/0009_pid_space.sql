-- What a monitor must know to prove that a worker of another pool on its host is gone.

comment on column pgworker.worker_heartbeats.boot_id is
    'where pid means something: the boot of the kernel and, after a colon, the PID namespace';
