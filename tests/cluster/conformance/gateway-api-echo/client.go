package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// How long one request may take. The suite has patience of its own beyond it.
const patience = 10 * time.Second

// request makes requests of `URL [--method=M] [-H NAME:VALUE]... [--count=N]`, one after another over the same connections, and
// prints their answers, an empty line between two.
func request(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: client URL [--method=M] [-H NAME:VALUE]... [--count=N]")
	}
	target, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	var headers list
	flags.Var(&headers, "H", "a header, as NAME:VALUE")
	method := flags.String("method", http.MethodGet, "the method")
	count := flags.Int("count", 1, "how many requests")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	transport := &http.Transport{Protocols: new(http.Protocols)}
	isGRPC := target.Scheme == "grpc"
	if isGRPC {
		target.Scheme, target.Path, *method = "http", grpcMethod, http.MethodPost
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
	}
	client := &http.Client{
		Transport: transport,
		Timeout:   patience,
		// A redirect is the answer that is looked at.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for number := range *count {
		if number > 0 {
			fmt.Println()
		}
		var body io.Reader
		if isGRPC {
			body = bytes.NewReader(grpcMessage("echo"))
		}
		asked, err := http.NewRequest(*method, target.String(), body)
		if err != nil {
			return err
		}
		for _, header := range headers {
			name, value, _ := strings.Cut(header, ":")
			asked.Header.Add(name, strings.TrimSpace(value))
			if strings.EqualFold(name, "host") {
				asked.Host = strings.TrimSpace(value)
			}
		}
		if isGRPC {
			asked.Header.Set("Content-Type", "application/grpc")
			asked.Header.Set("Te", "trailers")
		}
		if err := print(client, asked, isGRPC); err != nil {
			return err
		}
	}
	return nil
}

func print(client *http.Client, asked *http.Request, isGRPC bool) error {
	answered, err := client.Do(asked)
	if err != nil {
		return err
	}
	defer answered.Body.Close()
	fmt.Printf("Url=%s\n", asked.URL)
	fmt.Printf("StatusCode=%d\n", answered.StatusCode)
	for name, values := range answered.Header {
		fmt.Printf("ResponseHeader=%s:%s\n", name, strings.Join(values, ","))
	}
	var said string
	if isGRPC {
		if said, err = grpcText(answered.Body); err != nil {
			return err
		}
	}
	rest, err := io.ReadAll(answered.Body)
	if err != nil {
		return err
	}
	if status := answered.Trailer.Get("Grpc-Status"); isGRPC && status != "0" {
		return fmt.Errorf("gRPC status %q: %s", status, answered.Trailer.Get("Grpc-Message"))
	}
	for line := range strings.Lines(said + string(rest)) {
		fmt.Printf("body] %s\n", strings.TrimRight(line, "\n"))
	}
	return nil
}
