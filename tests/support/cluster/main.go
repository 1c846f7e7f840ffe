// One binary of etcd and Kubernetes' API server, for tests: `cluster etcd …`, `cluster kube-apiserver …`.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "etcd" {
		etcdmain.Main(os.Args[1:])
		return
	}
	os.Args = os.Args[1:]
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
