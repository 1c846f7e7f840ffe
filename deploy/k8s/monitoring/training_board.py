"""The dashboard of training: queue, the job that runs, gate, reward model, data that waits."""

from __future__ import annotations

from deploy.k8s.monitoring.panels import panel

REWARD = "ratchet_training_reward_model_ratio"
CANDIDATE = "ratchet_training_candidate_figure"

TRAINING = (
    panel(
        "Progress",
        "Of the present job, by method; 0 while none runs.",
        "percentunit",
        ("max by (method) (ratchet_training_run_progress_ratio)", "{{method}}"),
    ),
    panel(
        "Time left of the present stage",
        "By its pace so far; 0 where none runs, or has no pace yet.",
        "s",
        ("max(ratchet_training_stage_left_seconds)", "left"),
    ),
    panel(
        "Jobs",
        "Jobs that have not ended, replicas that may do them (1 is right), and the job's attempt.",
        "short",
        ("max(ratchet_training_jobs_waiting)", "not ended"),
        ("sum(ratchet_training_lease_held)", "replicas with the lease"),
        ("max(ratchet_training_attempt)", "attempt"),
    ),
    panel(
        "Time by stage",
        "In the last day: where a job's hours go.",
        "s",
        (
            "sum by (stage) (increase(ratchet_training_stage_seconds_total[1d]))",
            "{{stage}}",
        ),
    ),
    panel(
        "Jobs ended",
        "By method and outcome, in the last day.",
        "short",
        (
            "sum by (method, outcome) (increase(ratchet_training_runs_total[1d]))",
            "{{method}} {{outcome}}",
        ),
    ),
    panel(
        "Refused by the gate",
        "Failed checks of refused candidates, since the service's start.",
        "short",
        (
            "sum by (check) (ratchet_training_checks_failed_total)"
            ' or label_replace(vector(0), "check", "none", "", "")',
            "{{check}}",
        ),
    ),
    panel(
        "Last candidate: drift",
        "KL to its parent and to the chain's first version, nats a token. None before a job ended.",
        "none",
        (f'max by (model, figure) ({CANDIDATE}{{figure=~"kl|kl_first"}})', "{{model}} {{figure}}"),
    ),
    panel(
        "Last candidate: length",
        "Mean length of its answers against its parent's; 1 is as long.",
        "none",
        (f'max by (model) ({CANDIDATE}{{figure="length_ratio"}})', "{{model}}"),
    ),
    panel(
        "Last candidate: win rate and data of its policy",
        "Won against its parent by the judge, and rows of which the parent wrote both answers.",
        "percentunit",
        (
            f'max by (model, figure) ({CANDIDATE}{{figure=~"win_rate|data_on_policy_share"}})',
            "{{model}} {{figure}}",
        ),
    ),
    panel(
        "Reward model: accuracy",
        "Of the newest one: on pairs it never saw, its predecessor's on the same, and on votes since.",
        "percentunit",
        (
            f"max by (model, figure) ({REWARD}"
            '{figure=~"accuracy|predecessor_accuracy|fresh_accuracy"})',
            "{{model}} {{figure}}",
        ),
    ),
    panel(
        "Reward model: calibration error",
        "Expected calibration error of the newest one; 0 is sure as often as right.",
        "percentunit",
        (f'max by (model) ({REWARD}{{figure="calibration_error"}})', "{{model}}"),
    ),
    panel(
        "Reward model: drift of its data",
        "Population stability index of pairs since it, by feature; above 0.2 they have moved.",
        "none",
        ("max by (model, feature) (ratchet_training_reward_drift_ratio)", "{{model}} {{feature}}"),
        target=0.2,
    ),
    panel(
        "Votes scored by the newest reward model",
        "Since the service's start, by outcome; failed ones are tried again.",
        "short",
        ("sum by (outcome) (ratchet_training_fresh_votes_total)", "{{outcome}}"),
    ),
    panel(
        "Rows missing for the next training",
        "By kind; it begins by itself at 0.",
        "short",
        ("max by (model, kind) (ratchet_training_missing_rows)", "{{model}} {{kind}}"),
    ),
    panel(
        "Pairs that wait, and the week's plan",
        "In no version's data yet; collected since Monday, forecast and target of the plan.",
        "short",
        ("max by (model) (ratchet_training_new_pairs)", "{{model}} waiting"),
        ("max by (model, figure) (ratchet_training_week_pairs)", "{{model}} {{figure}}"),
    ),
    panel(
        "Room left on training's disks",
        "By directory: jobs in data, rows that are sorted in temporary; the alert is below 15 %.",
        "percentunit",
        (
            "min by (directory) ("
            'ratchet_disk_free_bytes{job="training"} / (ratchet_disk_size_bytes{job="training"} > 0))',
            "{{directory}}",
        ),
        target=0.15,
    ),
)
