package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
)

// Flags that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func serve(args []string) error {
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	var ports, tlsPorts, tcpPorts, grpcPorts list
	flags.Var(&ports, "port", "a port of HTTP/1.1 and HTTP/2")
	flags.Var(&tlsPorts, "tls", "which of them speak TLS")
	flags.Var(&tcpPorts, "tcp", "a port of TCP")
	flags.Var(&grpcPorts, "grpc", "a port of gRPC")
	certificate := flags.String("crt", "", "the certificate, PEM")
	key := flags.String("key", "", "its key, PEM")
	if err := flags.Parse(args); err != nil {
		return err
	}
	// Pods that are clients alone say nothing.
	if len(ports)+len(tcpPorts)+len(grpcPorts) == 0 {
		ports = list{"8080"}
	}
	ended := make(chan error)
	for _, port := range append(ports, grpcPorts...) {
		server := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(answer), Protocols: new(http.Protocols)}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetHTTP2(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		go func() {
			if slices.Contains(tlsPorts, port) {
				pair, err := tls.LoadX509KeyPair(*certificate, *key)
				if err != nil {
					ended <- err
					return
				}
				server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
				ended <- server.ListenAndServeTLS("", "")
				return
			}
			ended <- server.ListenAndServe()
		}()
	}
	for _, port := range tcpPorts {
		go func() { ended <- serveTCP(port) }()
	}
	return <-ended
}

// answer says what arrived, a line each.
func answer(response http.ResponseWriter, request *http.Request) {
	said := seen(request)
	if !strings.HasPrefix(request.Header.Get("Content-Type"), "application/grpc") {
		io.WriteString(response, said)
		return
	}
	response.Header().Set("Content-Type", "application/grpc")
	response.Header().Set("Trailer", "Grpc-Status")
	response.Write(grpcMessage(said))
	response.Header().Set("Grpc-Status", "0")
}

func seen(request *http.Request) string {
	var said strings.Builder
	say := func(name, value string) { fmt.Fprintf(&said, "%s=%s\n", name, value) }
	hostname, _ := os.Hostname()
	client, _, _ := net.SplitHostPort(request.RemoteAddr)
	say("Hostname", hostname)
	say("Method", request.Method)
	say("URL", request.RequestURI)
	say("Host", request.Host)
	say("Proto", request.Proto)
	say("IP", client)
	for name, values := range request.Header {
		for _, value := range values {
			say("RequestHeader", name+":"+value)
		}
	}
	return said.String()
}

func serveTCP(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}
