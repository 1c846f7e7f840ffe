"""`python -m services.training.trainers.launch <folder> <service's pid> <configuration>`.

Runs a job's stages by `accelerate launch`: several processes, on several GPUs or machines. Like a
single trainer it dies with the service that started it, and its processes with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from services.training.trainers.processes import die_with


def main(folder: Path, service: int, configuration: Path) -> int:
    """Start the processes that the configuration asks for and wait for them.

    Returns:
        The exit status: 0 when all is done, else that of the process that failed first.

    """
    if not die_with(service):
        print(f"{folder}: no child of process {service}: that service is gone", file=sys.stderr)
        return 1
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    chosen = launch_command_parser().parse_args(
        [
            *("--config_file", str(configuration), "--module"),
            *("services.training.trainers.run", str(folder), str(os.getpid())),
        ]
    )
    try:
        launch_command(chosen)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
